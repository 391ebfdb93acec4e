"""An experiment in the simulated marketplace: two rankers serve it for some days, and the truth is kept."""
