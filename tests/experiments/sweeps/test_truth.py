"""True click probabilities are found by id, whatever type the ids are stored in."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.sweeps.results import load_sweep
from tests.experiments.sweeps.sweep_folders import write_sweep


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.dictionary(pa.int32(), pa.int64())], ids=str)
def test_truth_with_ids_of_another_type_is_the_same_truth(tmp_path: Path, kind: pa.DataType) -> None:
    folder = write_sweep(tmp_path / "sweep")
    expected = load_sweep(folder).rows.click_probability_N
    path = folder / "truth" / "impressions.parquet"
    truth = pq.read_table(path)
    ids = truth["impression_id"].combine_chunks()
    stored = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids.cast(kind)
    pq.write_table(truth.set_column(0, "impression_id", stored), path)
    found = load_sweep(folder).rows.click_probability_N
    assert expected is not None
    assert found is not None
    np.testing.assert_array_equal(found, expected)
