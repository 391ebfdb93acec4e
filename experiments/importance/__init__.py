"""Which features carry a trained ranker: permutation, ablation, integrated gradients, and their agreement."""
