"""What a server sees, hour by hour and day by day, against the test days."""
