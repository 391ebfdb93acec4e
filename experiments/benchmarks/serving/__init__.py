"""Latency, memory and start-up of serving, against other servers."""
