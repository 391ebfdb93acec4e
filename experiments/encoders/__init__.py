"""The demo's encoders from data to table 1."""
