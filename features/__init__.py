"""What one impression is: input tables, point-in-time features, batches. The same offline and online."""
