"""A label uses the clicks of its attribution window, and none from after its split."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.feature_set import SPLITS, FeatureSet, LabelSummary
from features.offline.build import build
from features.schema import CounterConfig, FeatureConfig, LabelConfig, SparseFeature, SplitConfig
from tests.features.small_logs import UTC_US, write_tables

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY, INSTANT = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)

#: 4 train days, 1 validation day, 1 test day.
CONFIG = FeatureConfig(
    sparse=(SparseFeature(name="user", column="user_id"),),
    counters=CounterConfig(keys=("product",), windows_days=(7,), granularity="exact"),
    split=SplitConfig(validation_days=1, test_days=1),
)
TRAIN_ENDS, VALIDATION_ENDS, LOG_ENDS = START + 4 * DAY, START + 5 * DAY, START + 6 * DAY

#: What every log below has: both classes in each split, clicked at once or not at all. (shown, clicked)
PLAIN: list[tuple[datetime, datetime | None]] = [
    (at, at + INSTANT if click else None)
    for at in (START + day * DAY + 2 * HOUR for day in range(6))
    for click in (0, 1)
] + [(LOG_ENDS - INSTANT, None)]


def built(
    folder: Any,
    shown: list[tuple[datetime, datetime | None]],
    config: FeatureConfig = CONFIG,
    *,
    users: list[int] | None = None,
) -> FeatureSet:
    """Of impressions numbered from 0, all of product 0; user 1 unless `users` says."""
    impressions = pa.table(
        {
            "impression_id": list(range(len(shown))),
            "timestamp": pa.array([time for time, _ in shown], UTC_US),
            "user_id": users or [1] * len(shown),
            "product_id": [0] * len(shown),
            "clicked": pa.array([int(click is not None) for _, click in shown], pa.int8()),
            "click_timestamp": pa.array([click for _, click in shown], UTC_US),
        }
    )
    products = pa.table({"product_id": [0], "title": ["tea"], "aisle": ["drinks"]})
    data = write_tables(folder / "data", {"products": products, "impressions": impressions})
    build(data, folder / "features", config, threads=1)
    return FeatureSet.open(folder / "features")


def labels(feature_set: FeatureSet) -> dict[int, int]:
    """Label of each impression of a split, by id."""
    files = [path for split in SPLITS for path in feature_set.split_files(split)]
    rows = pa.concat_tables([pq.read_table(path, columns=["impression_id", "clicked"]) for path in files])
    return dict(zip(*(rows.column(name).to_pylist() for name in rows.column_names), strict=True))


def test_a_click_is_a_label_until_a_day_after_its_impression(tmp_path):
    at = START + 5 * HOUR
    late = [(at, at + DAY - INSTANT), (at, at + DAY), (at, at + 2 * DAY)]
    feature_set = built(tmp_path, late + PLAIN)
    assert [labels(feature_set)[number] for number in range(3)] == [1, 0, 0]
    train = feature_set.manifest.labels["train"]
    assert (train.clicks, train.after_window, train.after_split) == (3 + 4, 2, 0)
    assert feature_set.manifest.splits["train"].clicked == 1 + 4


@pytest.mark.parametrize(("hours", "label"), [(47.0, 0), (48.5, 1)])
def test_the_window_is_a_setting(tmp_path, hours, label):
    at = START + 5 * HOUR
    config = CONFIG.model_copy(update={"labels": LabelConfig(attribution_hours=hours)})
    assert labels(built(tmp_path, [(at, at + 2 * DAY), *PLAIN], config))[0] == label


def test_training_labels_use_no_click_from_after_the_train_days(tmp_path):
    at = TRAIN_ENDS - HOUR
    feature_set = built(tmp_path, [(at, TRAIN_ENDS - INSTANT), (at, TRAIN_ENDS), *PLAIN])
    assert [labels(feature_set)[number] for number in range(2)] == [1, 0]
    train = feature_set.manifest.labels["train"]
    # Open are the windows of these two and of the plain two that were shown on the last train day.
    assert (train.after_window, train.after_split, train.open_windows) == (0, 1, 4)


def test_validation_labels_use_no_click_from_after_the_validation_days_but_test_labels_do(tmp_path):
    at = VALIDATION_ENDS - HOUR
    shown = [(at, VALIDATION_ENDS - INSTANT), (at, VALIDATION_ENDS), (LOG_ENDS - HOUR, LOG_ENDS + HOUR)]
    feature_set = built(tmp_path, shown + PLAIN)
    assert [labels(feature_set)[number] for number in range(3)] == [1, 0, 1]
    assert feature_set.manifest.labels["validation"].after_split == 1
    test = feature_set.manifest.labels["test"]
    # All four test rows were shown less than a day before the log's last impression.
    assert test == LabelSummary(rows=4, clicks=2, after_window=0, after_split=0, open_windows=4)


def test_a_click_after_the_split_counts_for_later_impressions_and_one_after_the_window_nowhere(
    tmp_path,
):
    at = TRAIN_ENDS - HOUR
    plain = built(tmp_path / "plain", [(at, None), *PLAIN])
    after_split = built(tmp_path / "split", [(at, TRAIN_ENDS), *PLAIN])
    after_window = built(tmp_path / "window", [(at, at + DAY), *PLAIN])
    assert after_window.manifest.checksums == plain.manifest.checksums
    assert labels(after_split) == labels(plain)
    clicks = {
        name: pq.read_table(found.split_files("test")[0]).column("product_clicks_7d").to_pylist()
        for name, found in (("plain", plain), ("after split", after_split))
    }
    assert all(more > few for more, few in zip(clicks["after split"], clicks["plain"], strict=True))


def test_a_users_labels_use_no_click_from_after_her_first_impression_of_a_later_split(tmp_path):
    """Ten impressions a user: seven train, one validates, two test; user 2 looks a day later than user 1."""
    split = SplitConfig(method="per_user", validation_share=0.1, test_share=0.2)
    shown: list[tuple[datetime, datetime | None]] = []
    for user in (1, 2):
        times = [START + user * DAY + number * HOUR for number in range(10)]
        shown += [(time, None) for time in times]
        shown[-5] = (times[5], times[7])  # at her first of validation: it counts
        shown[-4] = (times[6], times[7] + INSTANT)
        shown[-3] = (times[7], times[8] + INSTANT)
        shown[-2] = (times[8], times[9] + HOUR)
    feature_set = built(
        tmp_path, shown, CONFIG.model_copy(update={"split": split}), users=[1] * 10 + [2] * 10
    )
    found = labels(feature_set)
    for first in (0, 10):
        assert [found[first + number] for number in range(5, 10)] == [1, 0, 0, 1, 0]
    after = {name: summary.after_split for name, summary in feature_set.manifest.labels.items()}
    assert after == {"train": 2, "validation": 2, "test": 0}


def test_ratings_of_one_second_keep_their_labels_on_both_sides_of_a_users_cut(tmp_path):
    """As in MovieLens: a rating is its own click, and a user's last ratings share a second."""
    split = SplitConfig(method="per_user", validation_share=0.2, test_share=0.2)
    times = [START + min(number, 5) * HOUR for number in range(10)]
    shown = [(time, time if number % 2 else None) for number, time in enumerate(times)]
    found = labels(built(tmp_path, shown, CONFIG.model_copy(update={"split": split})))
    assert found == {number: number % 2 for number in range(10)}


def test_clicks_without_times_are_labels_and_leave_no_window_open(tmp_path):
    shown = [(time, None) for time, _ in PLAIN]
    folder = tmp_path / "timed"
    built(folder, [(time, time if number % 2 else None) for number, (time, _) in enumerate(shown)])
    impressions = pq.read_table(folder / "data" / "impressions.parquet").drop_columns(["click_timestamp"])
    products = pq.read_table(folder / "data" / "products.parquet")
    data = write_tables(tmp_path / "data", {"products": products, "impressions": impressions})
    manifest = build(data, tmp_path / "features", CONFIG, threads=1)
    for summary in manifest.labels.values():
        assert (summary.after_window, summary.after_split, summary.open_windows) == (0, 0, 0)
    assert manifest.checksums == FeatureSet.open(folder / "features").manifest.checksums


def test_a_key_may_have_many_more_clicks_in_a_window_than_impressions(tmp_path):
    """Shown 200 times at once and clicked most of a day later: a CTR far above 1, as it is counted."""
    shown_at = START + DAY + HOUR
    crowd: list[tuple[datetime, datetime | None]] = [(shown_at, shown_at + 20 * HOUR)] * 200
    after = shown_at + DAY + HOUR  # a window of one day holds their clicks, and none of them
    counters = CounterConfig(keys=("product",), windows_days=(1,), granularity="exact", prior_impressions=2.0)
    feature_set = built(
        tmp_path, [(after, None), *crowd, *PLAIN], CONFIG.model_copy(update={"counters": counters})
    )
    rows = pa.concat_tables(pq.read_table(path) for path in feature_set.split_files("train"))
    at = rows["impression_id"].to_pylist().index(0)
    manifest = feature_set.manifest
    transform = manifest.transforms["product_ctr_1d"]
    # PLAIN has two impressions and a click on each morning, an hour before `after`
    rate = (201 + 2 * manifest.counter_prior_ctr) / (2 + 2)
    assert rate > 50
    assert rows["product_ctr_1d"][at].as_py() == pytest.approx((rate - transform.mean) / transform.sd)
