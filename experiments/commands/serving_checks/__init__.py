"""Commands that put a served model to the test: replay, load, hostile bodies, soaks, drift-free days."""
