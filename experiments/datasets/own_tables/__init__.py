"""A user's own tables, in the formats and under the names that they have, to the four input tables."""
