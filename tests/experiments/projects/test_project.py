"""`dashclip init`: its configs load and fit the data, its commands run, whatever is missing."""

import re
import shutil
import time
import tomllib
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.training.loop import Report
from experiments.api import MarketplaceConfig, generate_marketplace
from experiments.cli import app
from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.projects.estimates import PaceKnown, Stopwatch
from experiments.projects.project import write_project
from experiments.projects.survey import survey
from experiments.sweeps.sweep import SweepConfig, plan
from features.inputs.tables import InputError
from features.schema import FeatureConfig

Missing = frozenset[str]
#: What a shop may not have, each alone and all at once.
CASES = [
    *(frozenset[str](), frozenset({"queries"}), frozenset({"grades"}), frozenset({"purchases"})),
    *(frozenset({"images"}), frozenset({"queries", "grades", "purchases", "images"})),
]
#: The same in fewer projects, for what takes long: each thing is missing in one and there in another.
FEW_CASES = [
    *(frozenset[str](), frozenset({"grades", "purchases"}), frozenset({"queries", "images"})),
    frozenset({"queries", "grades", "purchases", "images"}),
]


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    """The tables of a simulated marketplace of size tiny."""
    folder = tmp_path_factory.mktemp("market") / "data"
    generate_marketplace(MarketplaceConfig.preset("tiny", seed=101, queries=200), folder)
    return folder


def without(market: Path, folder: Path, missing: Missing) -> Path:
    """A copy of the tables that lacks something, and has no truth where that would give it away."""
    data = folder / "data"
    shutil.copytree(market, data, ignore=shutil.ignore_patterns("truth") if missing else None)
    if "queries" in missing:
        path = data / "impressions.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["query"]), path)
    if "grades" in missing:
        (data / "relevance.parquet").unlink()
    if "purchases" in missing:
        (data / "purchases.parquet").unlink()
    if "images" in missing:
        path = data / "products.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["image"]), path)
    return data


def project(data: Path, out: Path, **changes) -> tuple[FeatureConfig, EncodersConfig, SweepConfig]:
    write_project(survey(data), out, size="tiny", measure=None)
    return (
        load_config(out / "features.toml", FeatureConfig),
        load_config(out / "encoders.toml", EncodersConfig),
        load_config(out / "sweep.toml", SweepConfig),
    )


@pytest.mark.parametrize("missing", CASES, ids=lambda missing: "-".join(sorted(missing)) or "all")
def test_the_configs_load_and_ask_for_nothing_that_is_missing(market, tmp_path, missing):
    features, encoders, sweep = project(without(market, tmp_path, missing), tmp_path / "project")
    queries, history = "queries" not in missing, "purchases" not in missing
    assert ("query" in [feature.name for feature in features.sparse]) == queries
    assert features.counters is not None
    assert ("query" in features.counters.keys) == queries
    assert ("image" in encoders.modalities) == ("images" not in missing)
    assert (encoders.pretrain is not None) == ("images" not in missing)
    assert (encoders.align is not None) == ("grades" not in missing)
    assert (encoders.warmup is not None) == (not {"images", "grades"} <= missing)
    assert (sweep.query_table is not None) == queries
    read = [run.config.ranker.semantic for run in plan(sweep, tmp_path / "runs")]
    entities = {entity for semantic in read if semantic for entity in semantic.entities}
    assert entities == {"product", *(["query"] if queries else []), *(["history"] if history else [])}
    assert sweep.simulated == (not missing), "the truth of the marketplace is beside its tables"


@pytest.mark.slow
@pytest.mark.parametrize("missing", FEW_CASES, ids=lambda missing: "-".join(sorted(missing)) or "all")
def test_the_commands_of_the_readme_run(market, tmp_path, monkeypatch, missing):
    data, out = without(market, tmp_path, missing), tmp_path / "project"
    arguments = ["init", str(data), str(out), "--size", "tiny", "--no-estimates"]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    block = (out / "README.md").read_text().split("```")[1]
    sweep = (out / "sweep.toml").read_text()
    (out / "sweep.toml").write_text(sweep.replace("seeds = [1, 2]", "seeds = [1]"))  # to take half as long
    monkeypatch.chdir(out)
    for line in block.strip().splitlines():
        if line.startswith("#"):
            continue
        words = line.removeprefix("dashclip ").split()
        # The compilers of the other backends take longer than all the rest.
        words += ["--backend", "eager"] if words[0] == "package" else []
        words += ["--processes", "1"] if words[0] == "sweep" else []
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{line}: {done.output[-2000:]} {done.exception!r}"
    assert (out / "runs/sweep/table2.json").exists()
    assert (out / "runs/package").is_dir()
    if "dashclip report runs/encoders" in block:
        page = (out / "runs/encoders/report.html").read_text()
        assert "encode pretrain DATA" not in page, "the page finds what the stages have learned"
        assert "holds no vectors of products" not in page


def test_a_few_days_get_a_smaller_split_and_very_few_are_cut_by_user(market, tmp_path):
    shown = pq.read_table(market / "impressions.parquet")
    first = pc.min(shown["timestamp"])
    for days, method in ((10, "global"), (2, "per_user")):
        data = without(market, tmp_path / f"{days}", frozenset())
        until = pc.add(first, pa.scalar(np.timedelta64(days * 24 - 12, "h").astype("timedelta64[us]")))
        pq.write_table(shown.filter(pc.less(shown["timestamp"], until)), data / "impressions.parquet")
        split = project(data, tmp_path / f"{days}" / "project")[0].split
        assert split.method == method
        if method == "global":
            assert split.test_days == split.validation_days == 2


def test_a_test_without_clicks_is_made_longer(market, tmp_path):
    data = without(market, tmp_path, frozenset())
    shown = pq.read_table(data / "impressions.parquet")
    last = pc.max(shown["timestamp"]).as_py()
    late = pc.greater(shown["timestamp"], pa.scalar(last - np.timedelta64(9, "D").astype(object)))
    clicked = pc.if_else(late, pa.scalar(0, pa.int8()), shown["clicked"].cast(pa.int8()))
    shown = shown.set_column(shown.schema.get_field_index("clicked"), "clicked", clicked)
    shown = shown.drop_columns(["click_timestamp"])
    pq.write_table(shown, data / "impressions.parquet")
    split = project(data, tmp_path / "project")[0].split
    assert split.test_days > 7
    assert survey(data).click_days[-split.test_days][1] > 0


def test_a_log_that_knows_nobody_gets_no_features_of_users(market, tmp_path):
    data = without(market, tmp_path, frozenset())
    for name in ("impressions", "purchases"):
        log = pq.read_table(data / f"{name}.parquet")
        nobody = pa.nulls(len(log), pa.int64())
        pq.write_table(
            log.set_column(log.schema.get_field_index("user_id"), "user_id", nobody), data / f"{name}.parquet"
        )
    features, _, sweep = project(data, tmp_path / "project")
    assert "user_id" not in [feature.name for feature in features.sparse]
    assert features.counters is not None
    assert "user" not in features.counters.keys
    assert not any("history" in name for name in sweep.variants)
    page = (tmp_path / "project" / "README.md").read_text()
    assert re.search(r"[\d,]+ impressions without a user", page)
    log = pq.read_table(data / "impressions.parquet")
    first = pc.less(log["timestamp"], pc.min(log["timestamp"]).as_py() + timedelta(days=1))
    pq.write_table(log.filter(first), data / "impressions.parquet")
    with pytest.raises(ValueError, match=r"covers [12] days? and names no users"):
        project(data, tmp_path / "other")


def test_nothing_is_overwritten(market, tmp_path):
    out = tmp_path / "project"
    out.mkdir()
    (out / "sweep.toml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds sweep.toml already"):
        project(market, out)
    assert [path.name for path in out.iterdir()] == ["sweep.toml"]
    assert (out / "sweep.toml").read_text() == "mine"


def test_columns_that_nobody_knows_are_left_to_the_user(market, tmp_path):
    data = without(market, tmp_path, frozenset())
    shown = pq.read_table(data / "impressions.parquet")
    dwell = pa.array(np.linspace(0, 1, len(shown)))
    shown = shown.append_column("dwell_seconds", dwell)
    shown = shown.append_column("campaign", pa.array([str(n % 5) for n in range(len(shown))]))
    pq.write_table(shown, data / "impressions.parquet")
    features, *_ = project(data, tmp_path / "project")
    names = {feature.name for feature in features.features}
    assert not names & {"dwell_seconds", "campaign"}, "they may be known only after the click"
    text = (tmp_path / "project" / "features.toml").read_text()
    assert '# { name = "campaign", column = "campaign" },  # 5 values' in text
    uncommented = re.sub(r"# (\{ name.*\},)  #.*", r"\1", text)
    named = {entry["name"] for entry in tomllib.loads(uncommented)["sparse"]}
    assert "campaign" in named, "taking the mark away is all it takes"


def test_every_value_has_its_meaning_above_it(market, tmp_path):
    project(market, tmp_path / "project")
    for name in ("features", "encoders", "sweep"):
        lines = (tmp_path / "project" / f"{name}.toml").read_text().split("[variants]")[0].splitlines()
        for above, line in pairwise(lines):
            if re.match(r"\w+ = ", line):
                assert above.startswith("#"), f"{name}.toml: {line}"
        assert max(map(len, lines)) <= 110


def test_estimates_are_of_this_machine_and_say_of_what(market, tmp_path):
    out = tmp_path / "project"
    done = CliRunner().invoke(app, ["init", str(market), str(out), "--size", "tiny"], catch_exceptions=False)
    assert done.exit_code == 0
    text = (out / "README.md").read_text()
    assert "An estimate for this machine" in text
    assert "(100% of all)" in text
    assert re.search(r"\| 14 rankers, one after the other \| (under )?[\d.]+ \|", text)
    named = re.findall(r"^\| (encoders: [\w -]+) \| (?:under )?[\d.]+ \|", text, flags=re.MULTILINE)
    assert named == [
        "encoders: text warm-up",
        "encoders: image warm-up",
        "encoders: stage 1",
        "encoders: stage 2",
        "encoders: encoding all products",
    ]
    assert [path.name for path in out.iterdir() if path.is_dir()] == [], "the sample is gone"


def test_a_training_is_timed_by_its_pace_and_ended_when_that_is_known(monkeypatch):
    """Two steps that take long at first, then a second each, of a hundred."""
    clock = iter([0.0, 50.0, 90.0, 91.0, 92.0, 93.0, 94.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch = Stopwatch()
    reports = [Report("stage", "rows", step, 100, {}, 1.0, None) for step in range(1, 100)]
    for report in reports[:5]:
        watch(report)
    with pytest.raises(PaceKnown):
        watch(reports[5])
    assert watch.seconds == pytest.approx(100)


def test_a_training_that_ends_before_its_pace_is_known_took_what_it_took(monkeypatch):
    clock = iter([0.0, 50.0, 90.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch = Stopwatch()
    for step in (1, 2):
        watch(Report("stage", "rows", step, 2, {}, 1.0, None))
    assert watch.seconds == 90.0


def test_a_folder_without_tables_is_refused_by_a_sentence(tmp_path):
    with pytest.raises(InputError, match="products"):
        survey(tmp_path)
