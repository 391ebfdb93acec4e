"""Adapters: published data sets, as published, to the four input tables."""
