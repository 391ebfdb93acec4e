"""The same features for a request: snapshot, plan, values."""
