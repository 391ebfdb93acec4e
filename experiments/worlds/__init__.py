"""Table 1 and table 2 over many simulated worlds: plan, parts, what they come to."""
