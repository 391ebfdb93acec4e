"""Which worlds are made of which parts, in which order, and which folders are refused."""

from pathlib import Path
from typing import Any

import pytest
import typer

from embeddings.catalog.holdout import HoldoutConfig
from experiments.commands.worlds import in_words, seeds_of
from experiments.config import ConfigError, load_config, parse_config
from experiments.encoders.config import EncodersConfig
from experiments.runtime.job_pool import Job, JobProgress
from experiments.sweeps.sweep import SweepConfig, tables_read
from experiments.worlds.forecast import FIRST_GUESS_S, Forecast, kind_of
from experiments.worlds.plan import (
    WorldsConfig,
    claim,
    encoder_seeds,
    execute_worlds,
    plan,
    planned_jobs,
)
from features.artifacts import BusyError, folder_lock
from features.schema import FeatureConfig

TINY = load_config(Path("encoders_tiny"), EncodersConfig)


def worlds(**changes: Any) -> WorldsConfig:
    asked = {
        "size": "tiny",
        "worlds": (3, 8),
        "presets": ("mixed", "retrieval"),
        "encoders": TINY,
        "features": load_config(Path("marketplace_features"), FeatureConfig),
        "sweep": load_config(Path("demo"), SweepConfig),
    }
    return parse_config({**asked, **changes}, WorldsConfig, where="worlds")


def of_kind(jobs: list[Job], kind: str) -> list[Job]:
    return [job for job in jobs if kind_of(job.name) == kind]


def test_no_two_worlds_share_a_seed(tmp_path: Path) -> None:
    config = worlds(worlds=(0, 1, 2, 999), encoder_seeds=3, ranker_seeds=4)
    rankers = {sweep.world: set(sweep.config.seeds) for sweep in plan(config, tmp_path)}
    encoders = {world: {encoder.seed for encoder in encoder_seeds(config, world)} for world in config.worlds}
    for seeds, count in ((rankers, 4), (encoders, 3)):
        assert sum(len(found) for found in seeds.values()) == len(set().union(*seeds.values())) == 4 * count


def test_a_world_reads_nothing_of_another_one_or_of_another_preset(tmp_path: Path) -> None:
    for sweep in plan(worlds(encoder_seeds=2), tmp_path):
        assert sweep.folder == tmp_path / f"world-{sweep.world}" / sweep.preset
        for run in sweep.runs:
            assert run.folder.is_relative_to(sweep.folder)
            assert run.config.features == sweep.folder / "features"
            read = tables_read([run])[run.config.variant]
            assert read is None or read.parent == sweep.folder


def test_what_reads_the_encoders_is_trained_once_for_each_seed_of_them(tmp_path: Path) -> None:
    config = worlds(worlds=(3,), presets=("mixed",), encoder_seeds=2)
    (sweep,) = plan(config, tmp_path)
    second = encoder_seeds(config, 3)[1].seed
    assert sweep.variants["dcn"] == ("dcn",)
    assert sweep.variants["dcn_pq_sim_history_lsa"] == ("dcn_pq_sim_history_lsa",)
    assert sweep.variants["dcn_pq_sim"] == ("dcn_pq_sim", f"dcn_pq_sim-{second}")
    read = tables_read(sweep.runs)
    assert read["dcn_pq_sim"] == sweep.folder / "embeddings"
    assert read[f"dcn_pq_sim-{second}"] == sweep.folder / f"embeddings-{second}"


def test_the_encoders_of_a_world_are_trained_once_for_all_presets(tmp_path: Path) -> None:
    jobs = planned_jobs(worlds(encoder_seeds=2), tmp_path)
    assert len(of_kind(jobs, "encoders")) == len(of_kind(jobs, "table 1")) == 2 * 2
    assert len(of_kind(jobs, "data")) == 2 * 2
    assert len(of_kind(jobs, "vectors")) == 2 * 2 * 2


def test_each_job_comes_after_what_it_needs(tmp_path: Path) -> None:
    jobs = planned_jobs(worlds(), tmp_path)
    needs = {job.name: set(job.needs) for job in jobs}
    done: set[str] = set()
    for job in jobs:
        assert needs[job.name] <= done
        done.add(job.name)
    assert needs["world 3: encoders"] == {"world 3 mixed: data"}
    assert needs["world 3 retrieval: vectors"] == {
        *("world 3: encoders", "world 3 mixed: vectors", "world 3 retrieval: data")
    }
    ranker = "world 8 retrieval: ranker dcn_pq_sim seed 8001"
    assert needs[ranker] == {"world 8 retrieval: vectors", "world 8 retrieval: data"}
    assert needs["world 8 mixed: ranker dcn seed 8001"] == {"world 8 mixed: data"}
    assert needs["world 3: table 1"] == {"world 3: encoders", "world 3 mixed: vectors"}


def test_a_rival_is_trained_once_a_world_and_compared_wherever_our_vectors_are(tmp_path: Path) -> None:
    config = worlds(worlds=(3,), encoder_seeds=2, rivals={"paper": TINY})
    plain = worlds(worlds=(3,), encoder_seeds=2)
    needs = {job.name: set(job.needs) for job in planned_jobs(config, tmp_path)}
    assert needs["world 3: encoders-paper"] == {"world 3 mixed: data"}
    for table in ("table 1", f"table 1-{encoder_seeds(config, 3)[1].seed}"):
        assert {"world 3: encoders-paper", "world 3 mixed: vectors-paper"} <= needs[f"world 3: {table}"]
    ranker = "world 3 retrieval: ranker dcn_pq_sim_paper seed 3001"
    assert needs[ranker] == {"world 3 retrieval: vectors-paper", "world 3 retrieval: data"}
    for sweep, without in zip(plan(config, tmp_path), plan(plain, tmp_path), strict=True):
        added = sweep.variants.keys() - without.variants.keys()
        assert added == {f"{name}_paper" for name, seeds in without.variants.items() if len(seeds) == 2}
        read = tables_read(sweep.runs)
        assert {read[name] for name in added} == {sweep.folder / "paper"}
        kept = {name: variant for name, variant in sweep.config.variants.items() if name not in added}
        assert kept == without.config.variants


def test_a_rival_may_come_later_and_table_1_is_then_measured_again(tmp_path: Path) -> None:
    config = worlds(worlds=(3,), presets=("mixed",))
    claim(config, tmp_path / "out")
    later = worlds(worlds=(3,), presets=("mixed",), rivals={"paper": TINY})
    claim(later, tmp_path / "out")
    (sweep,) = plan(later, tmp_path)
    sweep.folder.mkdir(parents=True)
    (sweep.folder / "table1.json").write_text('{"rows": {"dashclip": {}}}')
    assert not of_kind(planned_jobs(config, tmp_path), "table 1")
    assert of_kind(planned_jobs(later, tmp_path), "table 1")


def test_what_is_finished_is_not_planned_again(tmp_path: Path) -> None:
    config = worlds(worlds=(3,), presets=("mixed",))
    (sweep,) = plan(config, tmp_path)
    before = planned_jobs(config, tmp_path)
    for run in sweep.runs[:2]:
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text("{}")
    (sweep.folder / "table1.json").write_text('{"rows": {"dashclip": {}}}')
    left = {job.name for job in planned_jobs(config, tmp_path)}
    finished = {f"{sweep.name}: ranker {run.name}" for run in sweep.runs[:2]} | {"world 3: table 1"}
    assert {job.name for job in before} - left == finished


def test_more_worlds_presets_and_seeds_may_come_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim(worlds(worlds=(3,), presets=("mixed",)), out)
    claim(worlds(worlds=(3, 4), ranker_seeds=3, encoder_seeds=2), out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": "small"}, "size"),
        ({"encoders": load_config(Path("encoders_small"), EncodersConfig)}, "encoders"),
    ],
)
def test_a_folder_of_worlds_with_other_settings_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    out = tmp_path / "out"
    claim(worlds(), out)
    with pytest.raises(ValueError, match=f"worlds with other {named} than asked for now"):
        claim(worlds(**changes), out)


def test_a_rival_keeps_the_recipe_that_its_name_was_trained_with(tmp_path: Path) -> None:
    out, other = tmp_path / "out", TINY.model_copy(update={"seed": 5})
    claim(worlds(rivals={"one": TINY}), out)
    claim(worlds(rivals={"two": other}), out)
    with pytest.raises(ValueError, match="worlds with other rival one than asked for now"):
        claim(worlds(rivals={"one": other, "two": other}), out)
    claim(worlds(rivals={"one": TINY, "two": other}), out)


def test_a_run_with_other_settings_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = worlds(worlds=(3,), presets=("mixed",))
    claim(config, out)
    run = plan(config, out)[0].runs[0]
    run.folder.mkdir(parents=True)
    run.config.features.mkdir()
    (run.config.features / "manifest.json").write_text('{"checksums": {}}')
    other = run.config.model_copy(update={"seed": 77})
    (run.folder / "config.json").write_text(other.model_dump_json())
    with pytest.raises(ValueError, match="differs from the config given"):
        claim(config, out)


def test_a_folder_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="another kind"):
        claim(worlds(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_two_calls_at_the_same_time_do_not_share_a_folder(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out"), pytest.raises(BusyError, match="at work"):
        execute_worlds(worlds(), tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ("mixed", "clearance")}, "presets"),
        ({"worlds": (1, 1)}, "must differ"),
        ({"ranker_seeds": 0}, "ranker_seeds"),
        (
            {
                "encoders": load_config(Path("encoders_tiny"), EncodersConfig).model_copy(
                    update={"align": None}
                )
            },
            "both stages",
        ),
        ({"rivals": {"one": TINY.model_copy(update={"pretrain": None})}}, "encoders of one need both stages"),
        ({"rivals": {"../x": TINY}}, "rivals"),
        (
            {"rivals": {"one": TINY.model_copy(update={"holdout": HoldoutConfig(seed=1)})}},
            "rival one must hold out what the encoders do",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        worlds(**changes)


@pytest.mark.parametrize("name", ["embeddings", "lsa", "dashclip", "dcn", "data"])
def test_a_rival_with_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is taken"):
        worlds(rivals={name: TINY})


def test_a_sweep_with_vectors_that_no_world_has_is_refused() -> None:
    sweep = load_config(Path("demo"), SweepConfig)
    tables = sweep.features.parent / "bought_vectors"
    other = {"product_table": tables / "products", "query_table": tables / "queries"}
    variant = sweep.variants["dcn_pq_sim"].model_copy(update=other)
    changed = sweep.model_copy(update={"variants": {**sweep.variants, "dcn_pq_sim": variant}})
    with pytest.raises(ConfigError, match="bought_vectors, but a world has only"):
        worlds(sweep=changed)


def test_kinds_of_jobs_are_told_by_their_names(tmp_path: Path) -> None:
    jobs = planned_jobs(worlds(encoder_seeds=2), tmp_path)
    assert {kind_of(job.name) for job in jobs} == set(FIRST_GUESS_S)


def test_the_time_left_follows_what_parts_of_a_kind_took() -> None:
    def named(number: int) -> str:
        return f"world {number} mixed: data"

    now = 0.0
    jobs = [Job(named(number), lambda _: None, Path()) for number in range(4)]
    forecast = Forecast(jobs, processes=2, clock=lambda: now)
    assert forecast.left_s() == 4 * FIRST_GUESS_S["data"] / 2
    forecast(JobProgress(named(0)))
    now = 10.0
    assert forecast(JobProgress(named(0), ended=True)) == 3 * 10 / 2
    forecast(JobProgress(named(1)))
    now = 14.0
    assert forecast.left_s() == (6 + 10 + 10) / 2


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", (0, 1, 2, 3, 4)), ("7", (7,)), ("0,2, 7-9", (0, 2, 7, 8, 9))]
)
def test_worlds_are_named_by_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-2", "1-", "-1"])
def test_what_names_no_worlds_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seeds_of(text)


def test_times_are_said_in_words() -> None:
    assert [in_words(seconds) for seconds in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]
