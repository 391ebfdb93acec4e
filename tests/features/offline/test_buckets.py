"""What is scattered to buckets comes back row by row."""

import os
import resource
from itertools import pairwise

import numpy as np
import pytest

from features.offline import buckets as buckets_module
from features.offline.buckets import Buckets


@pytest.mark.parametrize("count", [1, 2, 5, 40, 1_000, 40_000])
@pytest.mark.parametrize(("waiting", "ahead"), [(0, 1), (256, 8 * 2**20)])
def test_results_return_to_their_rows_whatever_the_number_of_buckets(
    tmp_path, monkeypatch, count, waiting, ahead
):
    monkeypatch.setattr(buckets_module, "_WAITING_ROWS", waiting)
    monkeypatch.setattr(buckets_module, "_AHEAD_BYTES", ahead)
    rng = np.random.default_rng(count)
    batches = [rng.integers(-1, 12, size).astype(np.int32) for size in (50, 1, 30)]
    weights = np.bincount(np.concatenate(batches) + 1, minlength=13)[1:]
    buckets = Buckets(tmp_path / "user", weight_K=weights, count=count)
    first = 0
    for key_N in batches:
        buckets.append(key_N, {"key": key_N, "row": np.arange(first, first + len(key_N))})
        first += len(key_N)
    buckets.finish()
    for bucket in range(count):
        columns = buckets.read(bucket)
        if columns is None:
            continue
        low, high = buckets.keys(bucket)
        assert ((columns["key"] >= low) & (columns["key"] < high)).all()
        assert (np.diff(columns["row"]) > 0).all()  # time order is kept
        result = np.stack([columns["row"] + 1, columns["key"] * 100], axis=1).astype(np.int32)
        buckets.write_result("double", bucket, result)
        buckets.discard(bucket)
    reader = buckets.results("double", columns=2)
    first = 0
    for key_N in batches:
        row_N = np.arange(first, first + len(key_N))
        expected = np.stack([row_N + 1, key_N * 100], axis=1)
        expected[key_N < 0] = 0
        assert reader.next(buckets.order(key_N)).tolist() == expected.tolist()
        first += len(key_N)


def test_buckets_share_the_traffic_and_cover_every_key(tmp_path):
    weights = np.array([1, 1, 90, 1, 1, 1, 3, 0, 2])
    buckets = Buckets(tmp_path / "query", weight_K=weights, count=4)
    ranges = [buckets.keys(bucket) for bucket in range(4)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(weights)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    hot = next(bucket for bucket, (low, high) in enumerate(ranges) if low <= 2 < high)
    assert ranges[hot][1] == 3  # nothing follows the hot key into its bucket


def test_results_of_64_bits_come_back_whole_and_those_never_written_are_zero(tmp_path):
    buckets = Buckets(tmp_path / "user", weight_K=np.array([1, 1]), count=2)
    key_N = np.array([0, 1, 0], np.int32)
    buckets.append(key_N, {"key": key_N})
    buckets.finish()
    buckets.write_result("history", 0, np.array([[2**40, 2**40 + 1], [3, 4]]))
    found = buckets.results("history", columns=2, dtype=np.int64).next(buckets.order(key_N))
    assert found.tolist() == [[2**40, 2**40 + 1], [0, 0], [3, 4]]


def test_a_thousand_buckets_need_no_thousand_open_files(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    keys = np.arange(1_000, dtype=np.int32)
    own = max(map(int, os.listdir("/dev/fd")))  # of this process so far
    resource.setrlimit(resource.RLIMIT_NOFILE, (own + 64, hard))
    try:
        buckets = Buckets(tmp_path / "user", weight_K=np.ones(1_000, np.int64), count=1_000)
        for _ in range(3):
            buckets.append(keys, {"key": keys})
        buckets.finish()
        for bucket in range(1_000):
            assert buckets.read(bucket)["key"].tolist() == [bucket] * 3
            buckets.write_result("twice", bucket, np.full((3, 1), 2 * bucket, np.int32))
        reader = buckets.results("twice", columns=1)
        assert all((reader.next(buckets.order(keys))[:, 0] == 2 * keys).all() for _ in range(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_small_numbers_of_a_small_type_come_back_beside_large_ones(tmp_path):
    buckets = Buckets(tmp_path / "user", weight_K=np.array([1, 1]), count=2)
    key_N = np.array([1, 0, -1, 1], np.int32)
    buckets.append(key_N, {"key": key_N})
    buckets.finish()
    buckets.write_result("shown", 0, np.array([[255]], np.uint8))
    buckets.write_result("shown", 1, np.array([[70_000], [3]], np.uint32))
    found = buckets.results("shown", columns=1).next(buckets.order(key_N))
    assert found.dtype == np.int32
    assert found[:, 0].tolist() == [70_000, 255, 0, 3]
