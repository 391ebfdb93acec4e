"""The sections of the evidence page."""
