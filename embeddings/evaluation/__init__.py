"""How good vectors are: retrieval, opponents that need no training, and probes."""
