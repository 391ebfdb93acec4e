"""Training moments of counters are those of their rows, however the rows are put together."""

import numpy as np
import pytest

from features.columns.transforms import ExactMoments
from features.offline.key_counters import KeyCounts
from features.schema import CounterConfig

CONFIG = CounterConfig(windows_days=(1, 2), granularity="exact", prior_impressions=5.0)


@pytest.mark.parametrize("largest", [5, 100_000])  # few distinct pairs, and more than there are tiles
def test_moments_of_tiles_are_those_of_their_rows_one_by_one(largest):
    rng = np.random.default_rng(largest)
    both_TC = rng.integers(0, largest, (300, 4)).astype(np.int32)
    rows_T = rng.integers(0, 4, 300)
    both_TC[rows_T == 0] = 2 * largest  # seen after training alone, so no moment knows them
    found = KeyCounts("query", CONFIG, products=1).moments(both_TC, rows_T, prior_ctr=0.1)
    row_NC = np.repeat(both_TC, rows_T, axis=0)
    for window in range(2):
        shown_N, clicked_N = row_NC[:, 2 * window].astype(float), row_NC[:, 2 * window + 1]
        for quantity, value_N in (
            ("impressions", np.log1p(shown_N)),
            ("clicks", np.log1p(clicked_N)),
            ("ctr", (clicked_N + 5.0 * 0.1) / (shown_N + 5.0)),
        ):
            expected = ExactMoments()
            expected.add(value_N, np.ones(len(value_N), np.int64))
            assert found[f"query_{quantity}_{window + 1}d"] == expected
