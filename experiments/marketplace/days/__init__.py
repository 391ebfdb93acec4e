"""What happens on each simulated day: searches, clicks, purchases."""
