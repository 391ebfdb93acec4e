"""Rows of a feature set as training batches."""
