"""The whole way from a log to a served request, at sizes up to the paper's: what each step costs.

Each step is a command of `dashclip`, in a process of its own on one thread, and is written down when it ends:
a measurement that was cut off goes on with the step that it was in. The shop has the same products, queries
and grades at every size, so what grows is the log: `USER_IMPRESSIONS` impressions a user, over the same days.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.benchmarks.measure import Measurement, bytes_in, measure_module
from experiments.runtime.environment import commit, describe_machine
from features.artifacts import atomic_write_json
from features.progress import Progress

#: As in the paper-sized marketplace: 50 M impressions of 2 M users.
USER_IMPRESSIONS = 25
_BASELINE, _FULL = "dcn", "dcn_pq_sim_history"

Measure = Callable[..., Measurement]


@dataclass(frozen=True)
class ScaleBenchmark:
    """Sizes of the measurement."""

    rows: tuple[int, ...] = (1_000_000, 5_000_000, 50_000_000)
    #: Whose products, queries and grades every log has.
    shop: Literal["tiny", "large"] = "large"
    training_seeds: tuple[int, ...] = (1, 2)
    batch_size: int = 8192
    memory_limit: str = "2GB"
    lsa_dim: int = 64
    seed: int = 0


QUICK = ScaleBenchmark(rows=(12_000,), shop="tiny", batch_size=256)


@dataclass(frozen=True)
class Step:
    """One command: its name in the table, what it is called with, and the folder that it writes, if any."""

    name: str
    arguments: tuple[str, ...]
    writes: Path | None = None


def steps_of(benchmark: ScaleBenchmark, rows: int, folder: Path) -> list[Step]:
    """Every step at one size; what is served is trained first."""
    data, features, vectors = folder / "data", folder / "features", folder / "vectors"
    sweep, package = folder / "sweep", folder / "package"
    width = ("--dim", str(benchmark.lsa_dim))
    one_thread = ("--threads", "1", "--memory-limit", benchmark.memory_limit)
    marketplace = ("--size", benchmark.shop, "--seed", str(benchmark.seed), "--no-images")
    log = ("--impressions", str(rows), "--users", str(max(1, rows // USER_IMPRESSIONS)))
    train = ("sweep", str(folder / "sweep.toml"), str(sweep), "--processes", "1")
    trained = [(seed, variant) for seed in benchmark.training_seeds for variant in (_FULL, _BASELINE)]
    trainings = [
        Step(
            f"train {variant}, seed {seed}",
            (*train, "--part", f"{number}/{len(trained)}"),
            sweep / variant / f"seed-{seed}",
        )
        for number, (seed, variant) in enumerate(trained, start=1)
    ]
    first_run = str(sweep / _FULL / f"seed-{benchmark.training_seeds[0]}")
    return [
        Step("generate", ("generate", str(data), *marketplace, *log), data),
        Step("validate", ("validate", str(data), "--no-images", *one_thread)),
        Step(
            "features build",
            ("features", "build", str(data), str(features), "--config", "marketplace_features", *one_thread),
            features,
        ),
        Step("embed lsa", ("embed", "lsa", str(data), str(vectors), *width), vectors),
        trainings[0],
        Step("package", ("package", first_run, str(package), "--data", str(data)), package),
        Step("one request", ("replay", first_run, str(package), "--data", str(data), "--limit", "1")),
        *trainings[1:],
        Step("table 2", ("report", str(sweep))),
    ]


def run_scale_benchmark(
    benchmark: ScaleBenchmark,
    *,
    work: Path,
    out: Path,
    progress: Progress,
    measure: Measure = measure_module,
) -> dict[str, Any]:
    """Take every step at every size, and return `scale.json`.

    Args:
        work: for what the steps write, about 250 bytes an impression; removed when a size is through. Steps
            that an earlier call has taken there are not taken again.
        out: folder of `scale.json`, written anew after each step. Other sizes that it holds are kept if they
            were measured with the same settings.

    Raises:
        BenchmarkError: a step failed; the same call goes on with it.
    """
    settings = json.loads(json.dumps(asdict(replace(benchmark, rows=()))))
    file = out / "scale.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    sizes: dict[str, Any] = earlier["sizes"] if earlier.get("settings") == settings else {}

    def result() -> dict[str, Any]:
        ordered = dict(sorted(sizes.items(), key=lambda size: int(size[0])))
        return {"settings": settings, "machine": describe_machine(), "sizes": ordered}

    for rows in benchmark.rows:
        folder = work / str(rows)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.toml").write_text(_sweep(benchmark, folder), encoding="utf-8")
        steps = steps_of(benchmark, rows, folder)
        taken = _Taken(folder)
        for done, step in enumerate(steps):
            progress(f"{rows:,} impressions: {step.name}", done, len(steps))
            if step.name not in taken.steps:
                taken.add(step, measure("experiments", *step.arguments, watched=folder))
            sizes[str(rows)] = taken.summary()
            atomic_write_json(file, {"command": "dashclip bench scale", **result()})
        progress(f"{rows:,} impressions", len(steps), len(steps))
        shutil.rmtree(folder)
    return result()


class _Taken:
    """What the steps of one size have cost so far; kept in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "steps.json"
        self.steps: dict[str, Any] = {}
        if self._file.exists():
            self.steps = json.loads(self._file.read_text(encoding="utf-8"))

    def add(self, step: Step, measured: Measurement) -> None:
        """Write down what a step has cost, and on which commit."""
        self.steps[step.name] = {
            "cpu_s": measured.cpu_s,
            "seconds": measured.wall_s,
            "peak_mib": measured.peak_mib,
            "disk_mib": bytes_in(step.writes) / 2**20 if step.writes else 0.0,
            "scratch_mib": measured.scratch_mib,
            "commit": commit(),
        }
        atomic_write_json(self._file, self.steps)

    def summary(self) -> dict[str, Any]:
        """How large the log is, what the rankers have learnt, and each step's cost."""
        data = self._folder / "data" / "marketplace.json"
        log = json.loads(data.read_text(encoding="utf-8"))["summary"]
        runs = {
            "/".join(path.parts[-3:-1]): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self._folder / "sweep").glob("*/seed-*/metrics.json"))
        }
        names = ("impressions", "purchases", "products", "users", "queries", "labels")
        return {
            **{name: log[name] for name in names},
            "test_auc": {name: run["test"]["auc"] for name, run in runs.items()},
            "steps": self.steps,
        }


def _sweep(benchmark: ScaleBenchmark, folder: Path) -> str:
    """Table 2 of the two towers: the baseline, and all that the DashCLIP tower may read; an epoch each."""

    def path(name: str) -> str:
        return json.dumps(str(folder / name))  # a TOML string is written like one of JSON

    return f"""\
name = "what a log of this size costs"
baseline = "{_BASELINE}"
seeds = {list(benchmark.training_seeds)}
features = {path("features")}
product_table = {path("vectors/products")}
query_table = {path("vectors/queries")}
simulated = true

[ranker]
embedding_dim = 16
cross_layers = 2
deep_widths = [128, 64]
top_widths = [64]

[training]
batch_size = {benchmark.batch_size}
max_epochs = 1
evaluations_per_epoch = 1

[training.optimizer]
learning_rate = 0.003
embedding_learning_rate = 0.01

[variants.{_FULL}]
title = "DCN + product + query + similarity + purchase history (LSA vectors)"
[variants.{_FULL}.ranker.semantic]
entities = ["product", "query", "history"]

[variants.{_BASELINE}]
title = "DCN baseline"
"""
