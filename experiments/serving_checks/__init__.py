"""Proofs of a served model: replay, load, soak, fuzz."""
