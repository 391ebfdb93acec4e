"""Losses, the feature queue, the loop, checkpoints and ranks that both stages share."""
