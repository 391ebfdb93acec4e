"""How long a project's jobs may take on this machine: the jobs themselves, on a sample or for a few steps."""

import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from embeddings.catalog.products import ProductCatalog
from embeddings.stages.runs import new_encoder, warm_up
from embeddings.tables.lsa import embed_lsa
from embeddings.training.loop import Report
from experiments.config import parse_config
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import run_align, run_pretrain
from experiments.projects.survey import Survey
from experiments.runtime.environment import environment
from experiments.sweeps.sweep import SweepConfig, plan
from features.inputs.blanks import is_missing_sql
from features.inputs.table_specs import TableName
from features.inputs.tables import InputTables
from features.offline.build import build
from features.progress import Progress, silent
from features.schema import FeatureConfig
from ranking.run import execute_run

#: Beyond so many products encoders are not timed: reading and counting their titles takes minutes by itself.
MOST_PRODUCTS = 50_000
#: Steps of a training that are timed, and those before them, in which memory is first touched.
_STEPS_TIMED, _STEPS_BEFORE = 4, 2
#: Products that are encoded to know the pace.
_ENCODED = 64
#: Impressions of the sample, about: enough that the parts that do not grow are small beside those that do.
SAMPLE_IMPRESSIONS = 20_000


@dataclass(frozen=True)
class Estimates:
    """Seconds of whole jobs; memory as it was while they were measured.

    Attributes:
        seconds: of each job, by its name, in the order in which they run.
        sample: impressions that were measured, `share` of all; 0 without a log.
        peak_bytes: most that this process held so far.
    """

    seconds: dict[str, float]
    sample: int
    share: float
    peak_bytes: int


def estimate(
    survey: Survey,
    *,
    features: FeatureConfig | None,
    sweep: dict[str, Any] | None,
    encoders: EncodersConfig | None,
    progress: Progress = silent,
) -> Estimates:
    """Time what a project has: its encoders over a few steps, and the jobs of its log on a sample.

    Everything happens in a temporary folder. What belongs to the log is scaled up by impressions, a training
    of encoders by its steps: all of them, though it may stop early.

    Raises:
        ValueError: the sample cannot be built or trained on, such as one without clicks.
    """
    with tempfile.TemporaryDirectory(prefix="dashclip-sample-") as scratch:
        home = Path(scratch)
        seconds: dict[str, float] = {}
        sample = 0
        if features is not None and sweep is not None:
            one_in = max(1, survey.impressions // SAMPLE_IMPRESSIONS)
            progress("measuring on a sample: reading", 0, 4)
            sample = _sample(survey.data, home / "data", one_in)
            scale = survey.impressions / sample
            progress("measuring on a sample: features", 1, 4)
            seconds["features"] = scale * _seconds(lambda: build(home / "data", home / "features", features))
            progress("measuring on a sample: LSA", 2, 4)
            seconds["LSA vectors"] = _seconds(  # which reads all products
                lambda: embed_lsa(home / "data", home / "lsa")
            )
            progress("measuring on a sample: a ranker", 3, 4)
            one = scale * _ranker_seconds(sweep, home, queries=survey.queries > 0)
            runs = len(sweep["variants"]) * len(sweep["seeds"])
            seconds |= {"one ranker": one, f"{runs} rankers, one after the other": runs * one}
            progress("measuring on a sample: a ranker", 4, 4)
        if encoders is not None and survey.products <= MOST_PRODUCTS:
            seconds = _encoder_seconds(survey.data, encoders, home / "encoders", progress) | seconds
    return Estimates(
        seconds=seconds,
        sample=sample,
        share=sample / survey.impressions if survey.impressions else 0.0,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


class PaceKnown(Exception):
    """A training has been timed."""


class Stopwatch:
    """Hears of the steps of a training and ends it when their pace is known."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first = 0
        self.seconds = 0.0

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if report.step <= _STEPS_BEFORE:
            # A training may end before its pace is known: then its start counts as well.
            self.seconds += now - self._begun
            self._begun, self._first = now, report.step
            return
        self.seconds = (now - self._begun) / (report.step - self._first) * report.total_steps
        if report.step >= _STEPS_BEFORE + _STEPS_TIMED:
            raise PaceKnown


def _encoder_seconds(
    data: Path, config: EncodersConfig, folder: Path, progress: Progress
) -> dict[str, float]:
    """Of each training in the config, and of encoding all products; what was learned does not matter."""
    start = new_encoder(
        data,
        size=config.size,
        inputs=config.inputs,
        seed=config.seed,
        vocab_size=config.vocab_size,
        architecture=config.architecture,
    )
    warm = partial(warm_up, data, start=start, inputs=config.stage1_inputs)
    trainings: dict[str, Callable[..., object]] = {}
    if config.warmup is not None:
        trainings["encoders: text warm-up"] = partial(warm, folder / "text", config=config.warmup)
    if config.image_warmup is not None and "image" in config.modalities:
        trainings["encoders: image warm-up"] = partial(warm, folder / "image", config=config.image_warmup)
    if config.pretrain is not None:
        trainings["encoders: stage 1"] = partial(run_pretrain, data, folder / "stage1", config, start=start)
    if config.align is not None:
        trainings["encoders: stage 2"] = partial(run_align, data, folder / "stage2", config, start=start)
    found: dict[str, float] = {}
    for number, (name, training) in enumerate(trainings.items()):
        progress(f"timing {name}", number, len(trainings))
        watch = Stopwatch()
        with suppress(PaceKnown):
            training(show=watch)
        found[name] = watch.seconds
    if not trainings:
        return {}
    progress("timing encoders: encoding", len(trainings), len(trainings))
    catalog = ProductCatalog.open(data, modalities=config.modalities, text_columns=config.text_columns)
    some = np.linspace(0, len(catalog) - 1, min(len(catalog), _ENCODED)).astype(np.int64)
    encoding = _seconds(lambda: start.embed_products(start.load_batch(catalog, some, unreadable={})))
    return found | {"encoders: encoding all products": encoding * len(catalog) / len(some)}


def _ranker_seconds(sweep: dict[str, Any], home: Path, *, queries: bool) -> float:
    """Training and testing the last variant of the sweep, once."""
    name, variant = list(sweep["variants"].items())[-1]
    tables = {"product_table": home / "lsa/products"}
    if queries:
        tables["query_table"] = home / "lsa/queries"
    own = {key: value for key, value in variant.items() if not key.endswith("_table")}
    content = {
        "name": "sample",
        "baseline": name,
        "seeds": (1,),
        "features": home / "features",
        "ranker": sweep["ranker"],
        "training": sweep["training"] | {"max_epochs": 1},
        "variants": {name: own},
        **tables,
    }
    [run] = plan(parse_config(content, SweepConfig, where="sweep.toml"), home / "run")
    return _seconds(lambda: execute_run(run.config, run.folder, environment=environment()))


def _seconds(job: Callable[[], object]) -> float:
    start = time.monotonic()
    job()
    return time.monotonic() - start


def _sample(data: Path, folder: Path, one_in: int) -> int:
    """Every product, and what one of `one_in` users saw and bought; returns the impressions."""
    tables = InputTables.open(data)
    folder.mkdir()
    shown = 0
    names: tuple[TableName, ...] = ("products", "impressions", "purchases")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in names:
            if not tables.has(name):
                continue
            # Strangers are drawn one by one: nobody is not a user who is in the sample or not.
            own = "hash(impression_id)" if name == "impressions" else "1"
            who = f"CASE WHEN {is_missing_sql('user_id')} THEN {own} ELSE hash(user_id) END"
            some = f" WHERE {who} % {one_in} = 0" if name != "products" and one_in > 1 else ""
            rows = connection.sql(f"SELECT * FROM {tables.scan_sql(name)}{some}").to_arrow_table()
            if len(rows):
                pq.write_table(rows, folder / f"{name}.parquet")
            if name == "impressions":
                shown = len(rows)
    if not shown:
        raise ValueError("the sample has no impressions")
    return shown
