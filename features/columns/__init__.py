"""Kernels of single columns, the same offline and online."""
