"""Throughput of the encoders."""
