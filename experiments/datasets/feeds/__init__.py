"""Catalogue feeds that shops already export, to the table of products."""
