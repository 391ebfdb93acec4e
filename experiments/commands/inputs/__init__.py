"""Commands that make, check and prepare data."""
