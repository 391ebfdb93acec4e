"""The whole way from a log to a served request, at sizes up to the paper's: what each step costs.

Each step is a command of `dashclip`, in a process of its own on one thread, and is written down when it ends:
a measurement that was cut off goes on with the step that it was in. The shop has the same products, queries
and grades at every size, so what grows is the log: `USER_IMPRESSIONS` impressions a user, over the same days.
With a config of encoders these are trained and encode the shop, and rankers on their vectors stand beside
those on LSA's.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.benchmarks.measure import BenchmarkError, Measurement, bytes_in, measure_module
from experiments.config import config_file, load_config
from experiments.encoders.config import EncodersConfig
from experiments.runtime.environment import commit, describe_machine
from features.artifacts import atomic_write_bytes, atomic_write_json
from features.progress import Progress

#: As in the paper-sized marketplace: 50 M impressions of 2 M users.
USER_IMPRESSIONS = 25
_BASELINE, _FULL = "dcn", "dcn_pq_sim_history"
_CONFIG = "encoders.toml"
#: The same tower on vectors of the encoders.
_ENCODED = f"{_FULL}_dashclip"

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
    #: Config of the encoders, a file or the name of a shipped one; None leaves them out.
    encoders: Path | None = None


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
    sweep, encoders = folder / "sweep", folder / "encoders"
    width = ("--dim", str(benchmark.lsa_dim))
    one_thread = ("--threads", "1", "--memory-limit", benchmark.memory_limit)
    marketplace = ("--size", benchmark.shop, "--seed", str(benchmark.seed), "--no-images")
    log = ("--impressions", str(rows), "--users", str(max(1, rows // USER_IMPRESSIONS)))
    config = ("--config", str(folder / _CONFIG))
    trainings = _trainings(benchmark, folder)
    encoding, encoded = [], []
    if benchmark.encoders is not None:
        tables = folder / "encoded"
        encoding = [
            Step("encode align", ("encode", "align", str(data), str(encoders), *config), encoders),
            Step("encode run", ("encode", "run", str(data), str(encoders), str(tables), *config), tables),
        ]
        encoded = [
            trainings.pop(1),
            *_serving(benchmark, folder, _ENCODED, ", encoder", ("--encoder", str(encoders))),
        ]
    return [
        Step("generate", ("generate", str(data), *marketplace, *log), data),
        Step("validate", ("validate", str(data), "--no-images", *one_thread)),
        Step(
            "features build",
            ("features", "build", str(data), str(features), "--config", "marketplace_features", *one_thread),
            features,
        ),
        Step("embed lsa", ("embed", "lsa", str(data), str(vectors), *width), vectors),
        *encoding,
        trainings.pop(0),
        *_serving(benchmark, folder, _FULL),
        *encoded,
        *trainings,
        Step("table 2", ("report", str(sweep))),
    ]


def _trainings(benchmark: ScaleBenchmark, folder: Path) -> list[Step]:
    """One part of the sweep each, in its order: seeds, then variants."""
    sweep = folder / "sweep"
    variants = (_FULL, _BASELINE) if benchmark.encoders is None else (_FULL, _ENCODED, _BASELINE)
    trained = [(seed, variant) for seed in benchmark.training_seeds for variant in variants]
    train = ("sweep", str(folder / "sweep.toml"), str(sweep), "--processes", "1")
    return [
        Step(
            f"train {variant}, seed {seed}",
            (*train, "--part", f"{number}/{len(trained)}"),
            sweep / variant / f"seed-{seed}",
        )
        for number, (seed, variant) in enumerate(trained, start=1)
    ]


def _serving(
    benchmark: ScaleBenchmark, folder: Path, variant: str, suffix: str = "", options: tuple[str, ...] = ()
) -> list[Step]:
    """A package of the variant's first run, and a request that it answers."""
    run = str(folder / "sweep" / variant / f"seed-{benchmark.training_seeds[0]}")
    package = folder / f"package{'-encoder' if suffix else ''}"
    log = ("--data", str(folder / "data"))
    return [
        Step(f"package{suffix}", ("package", run, str(package), *log, *options), package),
        Step(f"one request{suffix}", ("replay", run, str(package), *log, "--limit", "1")),
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
        BenchmarkError: a step failed; the same call goes on with it. Or the encoders want images, which the
            logs do not have, or a measurement goes on with another config of theirs.
    """
    settings = asdict(replace(benchmark, rows=()))
    del settings["encoders"]
    settings = json.loads(json.dumps(settings))
    config = None if benchmark.encoders is None else _encoders(benchmark.encoders)
    file = out / "scale.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    sizes: dict[str, Any] = earlier["sizes"] if earlier.get("settings") == settings else {}

    def result() -> dict[str, Any]:
        ordered = dict(sorted(sizes.items(), key=lambda size: int(size[0])))
        return {"settings": settings, "machine": describe_machine(), "sizes": ordered}

    for rows in benchmark.rows:
        folder = work / str(rows)
        folder.mkdir(parents=True, exist_ok=True)
        _begin(folder, config, _sweep(benchmark, folder))
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
        encoders = self._encoders()
        return {
            **{name: log[name] for name in names},
            "test_auc": {name: run["test"]["auc"] for name, run in runs.items()},
            **({"encoders": encoders} if encoders else {}),
            "steps": self.steps,
        }

    def _encoders(self) -> dict[str, Any]:
        """What each training of the encoders saw of its rows, and how fast; empty without encoders."""
        found: dict[str, Any] = {}
        for stage, run, rows in (
            ("text warm-up", self._folder / "encoders" / "warmup" / "text", "training_products"),
            ("stage 2", self._folder / "encoders", "training_tuples"),
        ):
            if not (run / "training.json").exists():
                continue
            record = json.loads((run / "training.json").read_text(encoding="utf-8"))
            outcome = record["outcome"]
            found[stage] = {
                "steps": outcome["steps"],
                "batch_size": record["settings"]["config"]["batch_size"],
                "rows": record["counts"][rows],
                "rows_per_cpu_second": outcome["rows_per_cpu_second"],
                "best": outcome["best"],
            }
        return found


def _encoders(path: Path) -> str:
    """The config of encoders as text, to be kept beside what is made with it.

    Raises:
        ConfigError: it is none.
        BenchmarkError: it is of images, or trains no query encoder.
    """
    config = load_config(path, EncodersConfig)
    if "image" in config.modalities or config.align is None:
        raise BenchmarkError(
            f"the encoders must be trained on titles and grades, since generated logs of this size have no "
            f'images, got modalities {list(config.modalities)} in {path}; set modalities = ["text"] and keep '
            "the section [align], as the shipped config encoders_large does"
        )
    return config_file(path).read_text(encoding="utf-8")


def _begin(folder: Path, config: str | None, sweep: str) -> None:
    """Write the configs of one size.

    Raises:
        BenchmarkError: it was begun with another config of encoders.
    """
    kept = folder / _CONFIG
    if config is not None:
        if kept.exists() and kept.read_text(encoding="utf-8") != config:
            raise BenchmarkError(
                f"the measurement in {folder} was begun with another config of encoders; go on with that, "
                f"{kept}, or delete the folder to begin anew"
            )
        atomic_write_bytes(kept, config.encode())
    (folder / "sweep.toml").write_text(sweep, encoding="utf-8")


def _sweep(benchmark: ScaleBenchmark, folder: Path) -> str:
    """Table 2 of the two towers: the baseline, and all that the DashCLIP tower may read; an epoch each."""

    def path(name: str) -> str:
        return json.dumps(str(folder / name))  # a TOML string is written like one of JSON

    encoded = f"""
[variants.{_ENCODED}]
title = "DCN + product + query + similarity + purchase history (DashCLIP vectors)"
product_table = {path("encoded/products")}
query_table = {path("encoded/queries")}
[variants.{_ENCODED}.ranker.semantic]
entities = ["product", "query", "history"]
"""
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
{encoded if benchmark.encoders else ""}
[variants.{_BASELINE}]
title = "DCN baseline"
"""
