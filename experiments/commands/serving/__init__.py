"""Commands that package, serve and check a served model."""
