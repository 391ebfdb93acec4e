"""Cosines of texts that no table has a vector of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embeddings.grading.features import PairFeatures
from embeddings.grading.pairs import GradingError, Pairs
from tests.embeddings.grading.small_world import read_small_world
from tests.embeddings.grading.word_bags import WordBags


def test_a_text_that_is_not_the_catalogues_has_a_vector_of_its_own_where_a_reader_is_at_hand(
    world: Path, tmp_path: Path
) -> None:
    catalogue, _ = read_small_world(world)
    bags = WordBags(catalogue)
    features = PairFeatures(catalogue, {"bags": bags.write(tmp_path / "bags", catalogue, ["red lamp"])})
    title = catalogue.texts[5]
    stuffed = f"{title} red lamp"
    pairs = Pairs(["red lamp"] * 2, [title, stuffed], catalogue.product_ids.take(pa.array([5, 5])))
    cosine = features.names.index("cosine_bags")
    kept_N = features(pairs)[:, cosine]
    assert kept_N[0] == kept_N[1], "the table has one vector of the product"
    read_N = features.reading({"bags": bags})(pairs)[:, cosine]
    expected = bags.text_vectors([stuffed]) @ bags.text_vectors(["red lamp"]).T
    assert read_N == pytest.approx([kept_N[0], expected[0, 0]], abs=1e-3)
    assert bags.read[0] == stuffed
    assert title not in bags.read, "what the table has is not read again"


def test_a_product_without_a_row_is_told_and_read(world: Path, tmp_path: Path) -> None:
    catalogue, _ = read_small_world(world)
    bags = WordBags(catalogue)
    some = catalogue.take(np.arange(4))
    features = PairFeatures(catalogue, {"bags": bags.write(tmp_path / "bags", some, ["red lamp"])})
    ids = catalogue.product_ids.take(pa.array([3, 4]))
    assert features.without_vector(ids).tolist() == [False, True]
    reading = features.reading({"bags": bags})
    assert reading.without_vector(ids).tolist() == [False, False]
    pairs = Pairs(["red lamp"], [catalogue.texts[4]], ids.slice(1))
    expected = bags.text_vectors([catalogue.texts[4]]) @ bags.text_vectors(["red lamp"]).T
    cosine = features.names.index("cosine_bags")
    assert features(pairs)[0, cosine] == 0
    assert reading(pairs)[0, cosine] == pytest.approx(expected[0, 0], abs=1e-3)


def test_a_reader_of_another_table_or_of_another_width_is_refused(world: Path, tmp_path: Path) -> None:
    catalogue, _ = read_small_world(world)
    bags = WordBags(catalogue)
    features = PairFeatures(catalogue, {"bags": bags.write(tmp_path / "bags", catalogue, ["red lamp"])})
    with pytest.raises(GradingError, match=r"no table is named 'other'.*the tables are bags"):
        features.reading({"other": bags})
    trained_again = WordBags(catalogue)
    trained_again.encoder_id = "bags-again"
    with pytest.raises(GradingError, match=r"made by bags, .* bags is bags-again; give the encoder that"):
        features.reading({"bags": trained_again})
    narrow = WordBags(catalogue.take(np.arange(2)))
    pairs = Pairs(["red lamp"], ["red lamp"], catalogue.product_ids.slice(0, 1))
    with pytest.raises(GradingError, match=f"width {narrow.width}, but the table's have {bags.width}"):
        features.reading({"bags": narrow})(pairs)
