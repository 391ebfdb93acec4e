"""One ranker on several ranks: where its tables lie, its checkpoints and its training loop."""
