"""The page of a data folder: what is in it, and what that means for the models."""
