"""A `.npy` file written piece by piece is that of `np.save`."""

import numpy as np
import pytest

from features.online.growing_array import GrowingArray


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (5, 0, 12_345), (1,) * 40])
def test_the_file_is_that_of_np_save_byte_for_byte(tmp_path, sizes):
    pieces = [np.arange(size, dtype=np.int64) * 7 for size in sizes]
    with GrowingArray(tmp_path / "grown.npy", np.int64) as array:
        for piece in pieces:
            array.append(piece)
    np.save(tmp_path / "saved.npy", np.concatenate([np.zeros(0, np.int64), *pieces]))
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
