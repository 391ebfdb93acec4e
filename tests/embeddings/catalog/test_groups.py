"""Groups of rows that share a key."""

from embeddings.catalog.groups import connected_groups


def test_rows_are_joined_through_chains_and_named_by_the_first() -> None:
    keys = [(3, "x"), (1, "x"), (4, "y"), (1, "y"), (2, "z")]
    assert connected_groups(6, keys).tolist() == [0, 1, 2, 1, 1, 5]
    assert connected_groups(0, []).tolist() == []
