"""A feature set from raw logs, point-in-time correct."""
