"""Short programs to start from: rank your log, bring your own vectors, score a request."""
