"""A feature set from a log that is spread over many machines, by the same kernels."""
