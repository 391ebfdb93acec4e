"""How long a project's jobs may take on this machine: the jobs themselves, run on a sample of its users."""

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from embeddings.tables.lsa import embed_lsa
from experiments.config import parse_config
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

#: Impressions of the sample, about: enough that the parts that do not grow are small beside those that do.
SAMPLE_IMPRESSIONS = 20_000


@dataclass(frozen=True)
class Estimates:
    """Seconds of whole jobs, scaled up from a sample by impressions; memory as it was on the sample.

    Attributes:
        sample: impressions that were measured; `share` of all.
        ranker_s: one pass of the slowest variant over the training days, for one seed.
        peak_bytes: most that this process held so far.
    """

    sample: int
    share: float
    features_s: float
    lsa_s: float
    ranker_s: float
    peak_bytes: int


def estimate(
    survey: Survey, features: FeatureConfig, sweep: dict[str, Any], *, progress: Progress = silent
) -> Estimates:
    """Build features, make LSA vectors and train one ranker on a sample, in a temporary folder.

    Raises:
        ValueError: the sample cannot be built or trained on, such as one without clicks.
    """
    one_in = max(1, survey.impressions // SAMPLE_IMPRESSIONS)
    with tempfile.TemporaryDirectory(prefix="dashclip-sample-") as scratch:
        home = Path(scratch)
        progress("measuring on a sample: reading", 0, 4)
        sample = _sample(survey.data, home / "data", one_in)
        progress("measuring on a sample: features", 1, 4)
        features_s = _seconds(lambda: build(home / "data", home / "features", features))
        progress("measuring on a sample: LSA", 2, 4)
        lsa_s = _seconds(lambda: embed_lsa(home / "data", home / "lsa"))
        progress("measuring on a sample: a ranker", 3, 4)
        ranker_s = _ranker_seconds(sweep, home, queries=survey.queries > 0)
        progress("measuring on a sample: a ranker", 4, 4)
    scale = survey.impressions / sample
    return Estimates(
        sample=sample,
        share=sample / survey.impressions,
        features_s=features_s * scale,
        lsa_s=lsa_s,  # it read all products
        ranker_s=ranker_s * scale,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


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
