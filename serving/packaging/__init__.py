"""Making a package from a trained run, and refreshing it."""
