"""Files to run a server by: container, Kubernetes, systemd, and what watches it. See docs/operations.md."""
