"""The four input tables: specification, reading, validation."""
