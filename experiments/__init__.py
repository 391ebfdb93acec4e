"""Command line, simulated marketplace, sweeps, reports and benchmarks."""
