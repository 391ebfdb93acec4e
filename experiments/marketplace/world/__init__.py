"""What stays the same in the simulated marketplace: products, queries, shoppers, graders."""
