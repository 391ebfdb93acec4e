"""Data sets read from the files that others published, by one reader, to the four input tables."""
