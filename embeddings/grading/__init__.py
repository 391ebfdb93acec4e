"""Graders: people grade some pairs, a model learns it from them and grades the rest (paper section 2.2)."""
