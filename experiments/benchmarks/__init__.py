"""Speed and memory, measured against peers and against the limit of the machine."""
