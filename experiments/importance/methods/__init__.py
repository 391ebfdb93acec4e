"""How importance is measured: perturbation and attribution."""
