"""Criteo, Avazu, Open Bandit and Complete Journey, in the layout of their files, become logs to train on."""

import json
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import experiments
from experiments.cli import app
from experiments.config import load_config
from experiments.datasets.published.avazu import import_avazu
from experiments.datasets.published.complete_journey import import_complete_journey
from experiments.datasets.published.criteo import IDS, NUMBERS, import_criteo
from experiments.datasets.published.open_bandit import import_open_bandit
from experiments.sweeps.sweep import SweepConfig
from features.inputs.tables import InputError
from features.inputs.validation import validate
from features.offline.build import build
from features.schema import FeatureConfig
from tests.experiments.datasets.published.published_logs import avazu, complete_journey, criteo, open_bandit

CONFIGS = Path(experiments.__file__).parent / "configs"
START = datetime(2000, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def test_criteo_rows_keep_their_order_their_numbers_and_their_hashes(tmp_path):
    source, out = criteo(tmp_path / "dac"), tmp_path / "out"
    summary = import_criteo(source, out)
    published = [line.split("\t") for line in (source / "train.txt").read_text().splitlines()]
    found = rows_of(out, "impressions")
    assert len(found) == len(published) == 70
    for place, (row, fields) in enumerate(zip(found, published, strict=True)):
        assert (row["impression_id"], row["clicked"], row["user_id"]) == (place, int(fields[0]), None)
        assert row["timestamp"] == START + place * DAY / 10
        assert [row[name] for name in NUMBERS] == [int(text) if text else None for text in fields[1:14]]
        assert [row[name] for name in IDS] == [int(text, 16) if text else None for text in fields[14:]]
    assert rows_of(out, "products") == [{"product_id": 0, "title": None, "aisle": None}]
    said = json.loads((out / "source.json").read_text())
    assert said["clock"].startswith("constructed")
    assert "clock is CONSTRUCTED" in " ".join(summary.notes)
    assert validate(out, max_bad_share=0, threads=1).passed


def test_the_days_of_the_terabyte_logs_are_days_in_the_order_of_their_numbers(tmp_path):
    source = criteo(tmp_path / "1tb", rows=5, days=11)
    for day in (1, 3, 4, 5, 6, 7, 8, 9):
        (source / f"day_{day}").unlink()
    import_criteo(source, tmp_path / "out")
    days = [(row["timestamp"] - START) / DAY for row in rows_of(tmp_path / "out", "impressions")]
    assert days == pytest.approx([day + place / 5 for day in (0, 2, 10) for place in range(5)])


def test_a_sample_keeps_every_so_many_rows_in_their_order(tmp_path):
    source = criteo(tmp_path / "dac")
    import_criteo(source, tmp_path / "all")
    summary = import_criteo(source, tmp_path / "some", one_in=7)
    every, some = (rows_of(tmp_path / name, "impressions") for name in ("all", "some"))
    assert [row["impression_id"] for row in some] == list(range(0, 70, 7))
    assert [[row[name] for name in (*NUMBERS, *IDS)] for row in some] == [
        [row[name] for name in (*NUMBERS, *IDS)] for row in every[::7]
    ]
    assert (some[-1]["timestamp"] - START) / DAY < 7
    assert "one of 7 rows" in " ".join(summary.notes)


def test_avazu_devices_without_an_id_are_nobody(tmp_path):
    source, out = avazu(tmp_path / "avazu", packed=False), tmp_path / "out"
    summary = import_avazu(source, out)
    import_avazu(avazu(tmp_path / "packed"), tmp_path / "other")
    assert rows_of(out, "impressions") == rows_of(tmp_path / "other", "impressions")
    head, *lines = [line.split(",") for line in (source / "train").read_text().splitlines()]
    found = rows_of(out, "impressions")
    assert len(found) == len(lines) == 120
    nobody = 0
    for row, fields in zip(found, lines, strict=True):
        told = dict(zip(head, fields, strict=True))
        assert row["timestamp"] == datetime.strptime(told["hour"] + "+0000", "%y%m%d%H%z")
        assert (row["product_id"], row["clicked"]) == (int(told["C14"]), int(told["click"]))
        assert row["user_id"] == (None if told["device_id"] == "a99f214a" else told["device_id"])
        assert (row["site_id"], row["C20"], row["banner_pos"]) == (
            told["site_id"],
            -1,
            int(told["banner_pos"]),
        )
        nobody += row["user_id"] is None
    assert 30 < nobody < 90
    assert f"{nobody} impressions are of devices without an id" in " ".join(summary.notes)
    assert {row["product_id"] for row in rows_of(out, "products")} == {
        int(line[head.index("C14")]) for line in lines
    }
    assert validate(out, max_bad_share=0, threads=1).passed


def test_open_bandit_affinity_is_that_of_the_shown_product(tmp_path):
    source, out = open_bandit(tmp_path / "obd"), tmp_path / "out"
    import_open_bandit(source, out)
    head, *lines = [line.split(",") for line in (source / "random/men/men.csv").read_text().splitlines()]
    found = rows_of(out, "impressions")
    assert len(found) == len(lines) == 140
    for row, fields in zip(found, lines, strict=True):
        told = dict(zip(head, fields, strict=True))
        assert row["affinity"] == float(told[f"user-item_affinity_{told['item_id']}"])
        assert row["timestamp"] == datetime.fromisoformat(told["timestamp"])
        assert [row["product_id"], row["clicked"], row["position"], row["propensity_score"]] == [
            int(told["item_id"]),
            int(told["click"]),
            int(told["position"]),
            float(told["propensity_score"]),
        ]
        assert (row["user_id"], row["user_feature_3"]) == (None, told["user_feature_3"])
    assert len({row["affinity"] for row in found}) == 3
    first = rows_of(out, "products")[0]
    assert (first["product_id"], first["title"], first["item_feature_0"]) == (0, None, -0.5)
    assert validate(out, max_bad_share=0, threads=1).passed
    import_open_bandit(source, tmp_path / "bts", policy="bts")
    assert rows_of(tmp_path / "bts", "impressions") != found
    with pytest.raises(InputError, match=r"holds no file random/women/women\.csv"):
        import_open_bandit(source, tmp_path / "women", campaign="women")


def test_purchases_of_the_complete_journey_are_on_numbered_days_and_impressions_constructed(tmp_path):
    source, out = complete_journey(tmp_path / "cj", days=20), tmp_path / "out"
    summary = import_complete_journey(source, out, users=None, negatives=2)
    lines = [line.split(",") for line in (source / "transaction_data.csv").read_text().splitlines()[1:]]
    expected = sorted(
        (
            START
            + (int(fields[2]) - 1) * DAY
            + timedelta(hours=int(fields[8]) // 100, minutes=int(fields[8]) % 100),
            int(fields[1]),
            int(fields[3]),
            int(fields[0]),
        )
        for fields in lines
    )
    bought = rows_of(out, "purchases")
    found = [(row["timestamp"], row["product_id"], row["user_id"]) for row in bought]
    assert found == [(moment, product, household) for moment, _, product, household in expected]
    assert [row["purchase_id"] for row in bought] == list(range(len(lines)))
    first, *_, last = rows_of(out, "products")
    assert (first["title"], first["aisle"], first["department"]) == (
        "ICE - CRUSHED/CUBED 1 1 LB National",
        "FRZN ICE",
        "GROCERY",
    )
    assert (last["title"], last["aisle"], last["department"]) == ("Private", None, None)
    assert {row["constructed"] for row in rows_of(out, "impressions")} == {True}
    assert "impressions are CONSTRUCTED" in " ".join(summary.notes)
    assert validate(out, max_bad_share=0, threads=1).passed
    import_complete_journey(source, out, users=2, negatives=2)
    assert len({row["user_id"] for row in rows_of(out, "purchases")}) == 2


SETS: dict[str, tuple[Callable[..., Path], dict[str, int]]] = {
    "criteo": (criteo, {"rows": 700}),
    "avazu": (avazu, {"rows": 700}),
    "open-bandit": (open_bandit, {"rows": 700}),
    "complete-journey": (complete_journey, {}),
}


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_features_and_sweep_fit_what_the_command_writes(tmp_path, name):
    make, size = SETS[name]
    source, out, stem = make(tmp_path / "published", **size), tmp_path / "tables", name.replace("-", "_")
    result = CliRunner().invoke(app, ["import", name, str(source), str(out)])
    assert result.exit_code == 0, result.output
    assert ("baseline alone" in " ".join(result.output.split())) == (name != "complete-journey")
    config = load_config(CONFIGS / f"{stem}_features.toml", FeatureConfig)
    manifest = build(out, tmp_path / "features", config, threads=1)
    for split in ("train", "validation", "test"):
        assert 0 < manifest.splits[split].clicked < manifest.splits[split].rows
    assert (manifest.num_users > 0) == (name in ("avazu", "complete-journey"))
    assert manifest.data.anonymous_impressions == {
        "complete-journey": 0,
        "avazu": manifest.data.anonymous_impressions,
    }.get(name, manifest.data.impressions)
    sweep = load_config(CONFIGS / f"{stem}.toml", SweepConfig)
    assert sweep.features == Path(f"runs/{stem}/features")
    semantic = [variant.ranker.get("semantic") for variant in sweep.variants.values()]
    assert any(semantic) == (name == "complete-journey"), "vectors need texts"
    for text in (CONFIGS / f"{stem}.toml", CONFIGS / f"{stem}_features.toml"):
        assert tomllib.loads(text.read_text())


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "advice"),
    [
        ("criteo", "train.txt", None, "2\t1", r"line 1 has 2 fields, but Criteo as published has 40"),
        ("criteo", "train.txt", "fffffff", "zzzzzzz", r"have no hexadecimal number as C1, such as 'zzzzzzz"),
        ("avazu", "train", "hour", "time", r"line 1 names a column 'time'; is it Avazu as published\?"),
        ("avazu", "train", "141022", "141322", r"have no hour YYMMDDHH, such as '141322"),
        ("open-bandit", "random/men/men.csv", "click", "clicked", r"men\.csv has no column 'click'"),
        (
            "open-bandit",
            "random/men/item_context.csv",
            "item_feature_2",
            "x",
            r"has no column 'item_feature_2'",
        ),
        ("complete-journey", "transaction_data.csv", "DAY", "day", r"has no column 'DAY'.*as published\?"),
        (
            "complete-journey",
            "transaction_data.csv",
            "-0.6,",
            "-0.6,9",
            r"have no time of day HHMM, such as '9",
        ),
    ],
)
def test_files_that_are_not_as_published_are_named(tmp_path, name, file, old, new, advice):
    importers: dict[str, Callable[[Path, Path], object]] = {
        "criteo": import_criteo,
        "avazu": import_avazu,
        "open-bandit": import_open_bandit,
        "complete-journey": import_complete_journey,
    }
    options: dict[str, Any] = {"packed": False} if name == "avazu" else {}
    source = SETS[name][0](tmp_path / "published", **options)
    text = (source / file).read_text()
    (source / file).write_text(new + "\n" if old is None else text.replace(old, new))
    with pytest.raises(InputError, match=advice):
        importers[name](source, tmp_path / "out")
    (source / file).unlink()
    with pytest.raises(InputError, match=r"holds no file"):
        importers[name](source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
