"""A simulated experiment of some days: the same after a kill, the truth of known rankers, and its tables."""

import math
import multiprocessing
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from experiments.abtest.experiment_log import ExperimentLog
from experiments.abtest.metrics import METRICS
from experiments.abtest.simulated.policies import Policy
from experiments.abtest.simulated.run import Finished, day_folder, run_experiment
from experiments.abtest.simulated.settings import RunSettings
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import World, generate, make_world
from experiments.marketplace.tables import FIRST_USER_ID
from experiments.marketplace.world.catalog import FIRST_PRODUCT_ID
from features.inputs.tables import InputTables
from features.online.request import RequestError, ScoreRequest
from serving.client import ClientError
from serving.scoring.routing import assign
from serving.wire.reply import ScoreReply, best_first

CONFIG = MarketplaceConfig.preset("tiny", seed=7, images=False, impressions=6_000)
DAYS = 3


class KnownPolicy(Policy):
    """Scores by what the world knows: `relevance` of the product to the query, or a `hash` of both.

    Args:
        kill_at: midnight of a day that ends the process.
        fails: for the queries whose text has an even length.
    """

    def __init__(
        self, world: World, knows: str, *, kill_at_us: int | None = None, fails: bool = False
    ) -> None:
        super().__init__()
        self._world, self._knows, self._kill_at_us, self._fails = world, knows, kill_at_us, fails
        self._query = {text: place for place, text in enumerate(world.queries.texts)}
        self.ms = 1.0
        self.asked: list[ScoreRequest] = []
        self.refreshed_us: list[int] = []

    def refresh(self, log: Path, as_of_us: int, *, probe: ScoreRequest) -> bool:
        self.refreshed_us.append(as_of_us)
        return True

    def _ask(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[ScoreReply | RequestError | ClientError, float]]:
        self.asked += requests
        return [(self._one(request), self.ms) for request in requests]

    def _one(self, request: ScoreRequest) -> ScoreReply | RequestError | ClientError:
        assert request.query is not None
        assert request.timestamp_us is not None
        if self._kill_at_us is not None and request.timestamp_us > self._kill_at_us:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fails and len(request.query) % 2 == 0:
            return ClientError("status 503: no worker", status=503)
        product_N = request.candidates.to_numpy() - FIRST_PRODUCT_ID
        query_N = np.full(len(product_N), self._query[request.query])
        if self._knows == "relevance":
            score_N = 0.02 * (1 + 3 * self._world.judge.grades(query_N, product_N))
        else:
            score_N = ((product_N * 7919 + query_N * 104_729) % 1000 + 1) / 1001
        scores_N = score_N.astype(np.float32)
        return ScoreReply(scores_N, best_first(scores_N), self._knows, "000001", "", {})


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    generate(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(CONFIG)


def settings_of(world_folder: Path, **changes: object) -> RunSettings:
    named = {"world": world_folder, "control": "hash", "treatment": "relevance", "days": DAYS}
    return RunSettings.model_validate(
        {**named, "searches_per_day": 400, "holdout": 0.05, "explore": 0.2, **changes}
    )


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, world_folder: Path, world: World
) -> tuple[Path, Finished, dict[str, KnownPolicy]]:
    """A finished experiment: relevance against chance."""
    out = tmp_path_factory.mktemp("ran") / "out"
    policies = {"control": KnownPolicy(world, "hash"), "treatment": KnownPolicy(world, "relevance")}
    finished = run_experiment(settings_of(world_folder), out, lambda name, folder: policies[name])
    return out, finished, policies


def tables(out: Path, days: int = DAYS) -> dict[str, pa.Table]:
    """All tables of a run by name; days are numbered from the world's end."""
    found = {path.name: pq.read_table(path) for path in sorted((out / "experiment").glob("*.parquet"))}
    for day in range(CONFIG.days, CONFIG.days + days):
        for path in sorted(day_folder(out, day).rglob("*.parquet")):
            found[f"{day} {path.relative_to(day_folder(out, day))}"] = pq.read_table(path)
    return found


def test_the_same_policy_twice_has_no_lift_at_all(tmp_path: Path, world_folder: Path, world: World) -> None:
    out = tmp_path / "out"
    finished = run_experiment(
        settings_of(world_folder, days=2), out, lambda name, folder: KnownPolicy(world, "hash")
    )
    assert finished.true_lift == dict.fromkeys(METRICS, 0.0)
    twins = pq.read_table(day_folder(out, CONFIG.days + 1) / "twins.parquet")
    by_policy = {
        name: twins.filter(pc.equal(twins["policy"], name)).drop_columns(["policy"])
        for name in ("control", "treatment")
    }
    # Only what was really paid can differ: of the served twins' clicks that broke a budget.
    one, other = (by_policy[name].drop_columns(["revenue"]) for name in ("control", "treatment"))
    assert one.equals(other)


def test_who_knows_relevance_beats_chance(ran: tuple[Path, Finished, dict[str, KnownPolicy]]) -> None:
    lift = ran[1].true_lift
    assert lift["ctr"] > 0.1
    assert lift["relevance"] > 0.1
    assert lift["conversions"] > 0.1


def test_a_run_that_was_killed_ends_as_if_it_had_not(
    tmp_path: Path, world_folder: Path, world: World, ran: tuple[Path, Finished, dict[str, KnownPolicy]]
) -> None:
    out = tmp_path / "out"
    second_day = CONFIG.start + timedelta(days=CONFIG.days + 1)
    process = multiprocessing.get_context("spawn").Process(
        target=run_until_killed, args=(world_folder, out, second_day.isoformat())
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert day_folder(out, CONFIG.days).is_dir()
    assert not day_folder(out, CONFIG.days + 1).exists()
    policies = {"control": KnownPolicy(world, "hash"), "treatment": KnownPolicy(world, "relevance")}
    finished = run_experiment(settings_of(world_folder), out, lambda name, folder: policies[name])
    assert finished == ran[1]
    assert len(policies["control"].refreshed_us) == DAYS - 1
    expected = tables(ran[0])
    found = tables(out)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        columns = [column for column in table.column_names if column != "ms"]
        assert found[name].select(columns).equals(table.select(columns)), name


def run_until_killed(world_folder: Path, out: Path, day: str) -> None:
    """In a process of its own: the control kills it at noon of a day."""
    world = make_world(CONFIG)
    noon_us = int(np.datetime64(f"{day}T12:00", "us").astype(np.int64))
    run_experiment(
        settings_of(world_folder),
        out,
        lambda name, folder: KnownPolicy(
            world, "hash" if name == "control" else "relevance", kill_at_us=noon_us
        ),
    )


def test_consumers_keep_their_variant_and_the_hash_decides_it(
    ran: tuple[Path, Finished, dict[str, KnownPolicy]], world_folder: Path
) -> None:
    unit_days = pq.read_table(ran[0] / "experiment" / "unit_days.parquet")
    pairs = unit_days.select(["unit", "variant"]).group_by(["unit", "variant"]).aggregate([])
    settings = settings_of(world_folder)
    for pair in pairs.to_pylist():
        assert pair["variant"] == assign(str(pair["unit"]), settings.salt, settings.shares)
    assert set(pairs["variant"].to_pylist()) == {"control", "treatment", "holdout"}
    assert len(pc.unique(unit_days["day"])) == DAYS


def test_the_tables_are_an_experiment_and_say_what_the_log_says(
    ran: tuple[Path, Finished, dict[str, KnownPolicy]],
) -> None:
    out = ran[0]
    log = ExperimentLog.open(out / "experiment")
    assert log.description.simulated
    assert log.description.true_lift == pytest.approx(dict(ran[1].true_lift))
    assert log.days == DAYS
    assert log.other_units.keys() == {"holdout"}
    unit_days = pq.read_table(out / "experiment" / "unit_days.parquet")
    impressions = pa.concat_tables(
        pq.read_table(day_folder(out, CONFIG.days + day) / "impressions.parquet") for day in range(DAYS)
    )
    assert pc.sum(unit_days["impressions"]).as_py() == len(impressions)
    assert pc.sum(unit_days["clicks"]).as_py() == pc.sum(impressions["clicked"]).as_py()
    assert pc.sum(unit_days["searches"]).as_py() == ran[1].searches == DAYS * 400
    slices = pq.read_table(out / "experiment" / "slices.parquet")
    for kind in ("aisle", "query kind"):
        mine = slices.filter(pc.equal(slices["kind"], kind))
        assert pc.sum(mine["clicks"]).as_py() == pc.sum(impressions["clicked"]).as_py()


def test_covariates_are_what_the_worlds_log_says(
    ran: tuple[Path, Finished, dict[str, KnownPolicy]], world_folder: Path
) -> None:
    unit_days = pq.read_table(ran[0] / "experiment" / "unit_days.parquet")
    log = pq.read_table(world_folder / "impressions.parquet")
    end = np.datetime64(CONFIG.start + timedelta(days=CONFIG.days))
    time_N = log["timestamp"].cast(pa.timestamp("us")).to_numpy()
    recent = log.filter(pa.array(time_N >= end - np.timedelta64(28, "D")))
    user_N, clicked_N = recent["user_id"].to_numpy(), recent["clicked"].to_numpy()
    known = unit_days.select(["unit", "pre_clicks", "pre_impressions", "pre_conversions"])
    rows = known.group_by(["unit"]).aggregate([(name, "max") for name in known.column_names[1:]]).to_pylist()
    assert sum(row["pre_clicks_max"] > 0 for row in rows) > 50
    for row in rows:
        mine = user_N == row["unit"]
        assert row["pre_impressions_max"] == mine.sum()
        assert row["pre_clicks_max"] == clicked_N[mine].sum()
        assert row["pre_conversions_max"] <= row["pre_clicks_max"]
    assert sum(row["pre_conversions_max"] for row in rows) > 0


def test_the_log_grows_by_what_was_served(
    ran: tuple[Path, Finished, dict[str, KnownPolicy]], world_folder: Path
) -> None:
    before, after = InputTables.open(world_folder), InputTables.open(ran[0] / "log")
    for name in ("impressions", "purchases"):
        count = {
            which: sum(pq.read_metadata(path).num_rows for path in opened.root.rglob(f"*{name}*/*.parquet"))
            or pq.read_metadata(opened.root / f"{name}.parquet").num_rows
            for which, opened in (("before", before), ("after", after))
        }
        assert count["after"] > count["before"]
    ids = pa.concat_tables(
        pq.read_table(path, columns=["impression_id"]) for path in (ran[0] / "log" / "impressions").iterdir()
    )
    assert len(pc.unique(ids["impression_id"])) == len(ids)


def test_a_twin_that_was_not_served_brings_its_own_purchases(
    ran: tuple[Path, Finished, dict[str, KnownPolicy]], world_folder: Path
) -> None:
    out, _, policies = ran
    settings = settings_of(world_folder)
    bought = pq.read_table(day_folder(out, CONFIG.days) / "twin_purchases.parquet").to_pylist()
    mine: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for row in bought:
        rows = mine.setdefault((row["policy"], row["user_N"] + FIRST_USER_ID), set())
        rows.add((row["product_N"], row["time_us_N"]))
    sent = 0
    for name, other in (("control", "treatment"), ("treatment", "control")):
        for request in policies[name].asked:
            assert isinstance(request.user_id, int)
            served = assign(str(request.user_id), settings.salt, settings.shares)
            was_served = (served == "treatment") == (name == "treatment")
            own, others = mine.get((name, request.user_id), set()), mine.get((other, request.user_id), set())
            if was_served:
                assert request.history is None
            elif request.history is not None:
                sent += 1
                only_own = {product for product, _ in own} - {product for product, _ in others}
                known = set((request.history.to_numpy() - FIRST_PRODUCT_ID).tolist())
                assert only_own <= known
    assert sent > 0, "no twin differed: this test shows nothing"


def test_a_search_without_scores_is_counted_and_shown_by_bids(
    tmp_path: Path, world_folder: Path, world: World
) -> None:
    out = tmp_path / "out"
    finished = run_experiment(
        settings_of(world_folder, days=1),
        out,
        lambda name, folder: KnownPolicy(world, "hash", fails=name == "treatment"),
    )
    unit_days = pq.read_table(out / "experiment" / "unit_days.parquet")
    errors = {
        variant: pc.sum(unit_days.filter(pc.equal(unit_days["variant"], variant))["errors"]).as_py()
        for variant in ("control", "treatment")
    }
    assert errors["control"] == 0
    assert errors["treatment"] == finished.failed > 20
    assert finished.first_failure is not None
    assert finished.first_failure.startswith("treatment: status 503")


def test_what_was_not_timed_has_no_latency(tmp_path: Path, world_folder: Path, world: World) -> None:
    policies = {name: KnownPolicy(world, "hash") for name in ("control", "treatment")}
    for policy in policies.values():
        policy.ms = math.nan
    run_experiment(settings_of(world_folder, days=1), tmp_path / "out", lambda name, folder: policies[name])
    assert not (tmp_path / "out" / "experiment" / "latency.parquet").exists()
    assert ExperimentLog.open(tmp_path / "out" / "experiment").latency == ()


def test_another_experiment_in_the_same_folder_is_refused(
    tmp_path: Path, ran: tuple[Path, Finished, dict[str, KnownPolicy]], world_folder: Path, world: World
) -> None:
    def make_policy(name: str, folder: Path) -> Policy:
        return KnownPolicy(world, "hash")

    with pytest.raises(ValueError, match="salt was abtest, now other"):
        run_experiment(settings_of(world_folder, salt="other"), ran[0], make_policy)
    (tmp_path / "something.txt").write_text("of a person")
    with pytest.raises(FileExistsError, match="choose another folder"):
        run_experiment(settings_of(world_folder), tmp_path, make_policy)
