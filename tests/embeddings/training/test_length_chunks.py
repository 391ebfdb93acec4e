"""Texts of a batch in chunks of alike length."""

import numpy as np

from embeddings.training.length_chunks import length_chunks


def test_batches_of_texts_have_few_shapes() -> None:
    """A kernel is built for each: 300 batches of 100 to 128 texts with 5 to 48 tokens."""
    rng = np.random.default_rng(0)
    shapes, padded, widest = set(), 0, 0
    for _ in range(300):
        length_N = rng.poisson(18, rng.integers(100, 129)).clip(5, 48)
        order_N, chunks = length_chunks(length_N)
        assert sorted(order_N.tolist()) == list(range(len(length_N)))
        for rows, tokens in chunks:
            assert (length_N[order_N[rows]] <= tokens).all()
            shapes.add((rows.stop - rows.start, tokens))
            padded += (rows.stop - rows.start) * tokens
        widest += len(length_N) * length_N.max()
    assert len(shapes) < 150
    assert padded < 0.8 * widest
