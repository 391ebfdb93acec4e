"""Online experiments: what was measured, what it says of the challenger, and how many users it takes."""
