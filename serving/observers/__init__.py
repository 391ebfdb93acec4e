"""What looks at answers that have been given: shadow scoring and the feature log."""
