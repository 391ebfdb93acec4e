"""The page of an online experiment, and the page of its plan."""
