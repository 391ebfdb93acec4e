"""Variants times seeds, and what they come to: table 2."""
