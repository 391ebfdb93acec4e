"""A data set in which no product has an aisle draws its proxies from all products."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embeddings.stages.graded_inputs
from embeddings.relevance.sampling import TupleConfig
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.runs import align
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder


@pytest.mark.parametrize(
    "aisles, expected",
    [([None] * 6, None), ([""] * 6, None), (["tea", *[None] * 5], ["tea", *[""] * 5])],
    ids=["all null", "all blank", "one"],
)
def test_tuples_know_that_there_are_no_aisles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aisles: list[str | None], expected: list[str] | None
) -> None:
    data = write_small_catalog(tmp_path / "data", products=6)
    products = pq.read_table(data / "products.parquet")
    place = products.schema.get_field_index("aisle")
    products = products.set_column(place, "aisle", pa.array(aisles, pa.string()))
    pq.write_table(products, data / "products.parquet")
    asked: list[Sequence[str] | None] = []

    def noted(*_: object, aisles: Sequence[str] | None, **__: object) -> None:
        asked.append(aisles)
        raise InterruptedError

    monkeypatch.setattr(embeddings.stages.graded_inputs, "build_tuples", noted)
    config = AlignConfig(epochs=1, batch_size=2, learning_rate=0.1, seed=7)
    with pytest.raises(InterruptedError):
        align(data, tmp_path, start=small_encoder(), config=config, tuple_config=TupleConfig())
    assert asked == [expected]
