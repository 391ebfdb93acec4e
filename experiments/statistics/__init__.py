"""Intervals, the paper's numbers, and both as table cells."""
