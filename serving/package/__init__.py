"""What a served package holds, and how it is opened."""
