"""The two training stages of DashCLIP and what surrounds them."""
