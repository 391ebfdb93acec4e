"""The two-tower click-through-rate ranker on torchrec: model, training, metrics, checkpoints."""
