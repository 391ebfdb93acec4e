"""The closed loop: a policy is retrained every week on the log of what it served itself."""
