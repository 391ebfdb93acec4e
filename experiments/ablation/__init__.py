"""Encoder variants over training seeds: plan, runs, tables."""
