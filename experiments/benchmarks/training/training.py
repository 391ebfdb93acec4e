"""Training speed against the peers and against the machine: the same DCN-v2 on the same Criteo-like rows.

Runs alternate (ours, peer, peer, ours, ...) so that a slow minute of the machine falls on all. The first
round trains a whole epoch and gives the AUC; later rounds train its first rows and add to the speed only.
Speeds are rows per processor second on one thread: processor time is what a cluster bills, and is the
steadier of the two clocks.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from experiments.benchmarks.measure import last_json, measure_module, spread
from experiments.benchmarks.training.criteo_like import (
    NUM_DENSE,
    NUM_SPARSE,
    TrainingParts,
    draw_rows,
    write_feature_set,
    write_peer_arrays,
)
from experiments.benchmarks.training.peers import protocol
from experiments.benchmarks.training.peers.environments import PEERS, ensure_environment
from experiments.benchmarks.training.peers.torcheasyrec import (
    RUNNER,
    prepared_checkout,
    torcheasyrec_version,
)
from experiments.benchmarks.training.roofline import (
    DcnShape,
    MachinePeaks,
    best_peaks,
    measure_peaks,
    roofline_rows_per_s,
)
from experiments.benchmarks.training.step_profile import step_shares
from experiments.runtime.environment import describe_machine
from features.artifacts import atomic_folder
from features.progress import Progress

SHAPE = DcnShape(
    dense_features=NUM_DENSE,
    sparse_features=NUM_SPARSE,
    embedding_dim=protocol.EMBEDDING_DIM,
    cross_layers=protocol.CROSS_LAYERS,
    deep_widths=protocol.DEEP_WIDTHS,
)
OURS = "ours"
TORCHEASYREC = "torcheasyrec"
_OURS_MODULE = "experiments.benchmarks.training.ours_runner"


@dataclass(frozen=True)
class TrainingBenchmark:
    """Sizes of the comparison."""

    rows: int = 1_000_000
    test_share: float = 0.1
    #: Rows of the rounds after the first.
    short_rows: int = 65_536
    #: Rows on which bfloat16 and float32 are compared where bfloat16 has no units and crawls.
    tiny_rows: int = 49_152
    rounds: int = 3
    batch_size: int = 4096
    step_batches: int = 8
    #: Ours is measured on so many threads, too, by wall time, beside one.
    threads: int = 1
    seed: int = 0

    @property
    def parts(self) -> TrainingParts:
        first_test_row = round(self.rows * (1 - self.test_share))
        return TrainingParts(
            {"train": first_test_row, "train_short": self.short_rows, "train_tiny": self.tiny_rows},
            first_test_row,
        )


QUICK = TrainingBenchmark(rows=200_000, short_rows=24_576, tiny_rows=8_192, rounds=2, step_batches=4)


@dataclass(frozen=True)
class Trainer:
    """One row of the comparison: what runs, in which precision, by whose interpreter (ours if None)."""

    name: str
    title: str
    module: str
    precision: str = "float32"
    python: Path | None = None
    #: Folders that it imports from as well.
    imports: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Run:
    """One process: its outcome (`protocol.Outcome` as JSON) and the peak memory seen from outside."""

    trainer: str
    part: str
    outcome: dict[str, Any]
    peak_mib: float


def run_training_benchmark(
    benchmark: TrainingBenchmark,
    *,
    work: Path,
    environments: Path,
    with_peers: bool,
    with_bfloat16: bool,
    torcheasyrec: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Make the data and the peers' environments, run all trainers in turn, and return `training.json`.

    Args:
        torcheasyrec: a checkout of TorchEasyRec, which is a peer then.
    """
    load = os.getloadavg()[0]
    data, best_auc = _criteo_like_folder(benchmark, work, progress)
    peaks = [measure_peaks()]
    bfloat16_is_native = peaks[0].bfloat16_gflops > peaks[0].float32_gflops
    ours = [Trainer(OURS, "DashCLIP Ranker, float32", _OURS_MODULE)]
    ours_bfloat16 = Trainer(f"{OURS}_bfloat16", "DashCLIP Ranker, bfloat16", _OURS_MODULE, "bfloat16")
    if with_bfloat16 and bfloat16_is_native:
        ours.append(ours_bfloat16)
    peers = [
        Trainer(
            peer.name,
            peer.title,
            peer.runner,
            python=ensure_environment(peer, environments, progress=progress),
        )
        for peer in (PEERS if with_peers else ())
    ]
    if torcheasyrec is not None:
        imports = prepared_checkout(torcheasyrec, environments, progress=progress)
        peers += _torcheasyrec(torcheasyrec_version(torcheasyrec), imports, bfloat16=bfloat16_is_native)
    schedule = [
        (trainer, "train" if round_number == 0 else "train_short")
        for round_number in range(benchmark.rounds)
        for trainer in (*ours, *peers)
    ]
    if with_bfloat16 and not bfloat16_is_native:  # the two precisions after the same few rows
        schedule += [(ours[0], "train_tiny"), (ours_bfloat16, "train_tiny")]
    runs = []
    for done, (trainer, part) in enumerate(schedule):
        progress(f"training: {trainer.title} ({part})", done, len(schedule))
        runs.append(_run(trainer, part, data, benchmark))
        if trainer.name == OURS and part != "train_tiny":
            peaks.append(measure_peaks(seconds_each=1.0))
    threads = None
    if benchmark.threads > 1:
        threads = _more_threads(ours, data, benchmark, progress)
    progress("training", len(schedule), len(schedule))
    trainers = {trainer.name: trainer for trainer, _ in schedule}
    return {
        "settings": asdict(benchmark),
        "machine": describe_machine(),
        "load_average_before": load,
        **summarise(runs, trainers=trainers, peaks=best_peaks(peaks), best_auc=best_auc),
        "threads": threads,
    }


def summarise(
    runs: Sequence[Run], *, trainers: dict[str, Trainer], peaks: MachinePeaks, best_auc: float
) -> dict[str, Any]:
    """The published numbers of a set of runs: medians with ranges, ratios, shares of the roofline.

    The short runs that compare precisions do not enter the speeds of the others.
    """
    speeds = {
        name: _speeds(
            [run for run in runs if run.trainer == name and run.part != "train_tiny"]
            or [run for run in runs if run.trainer == name]
        )
        for name in trainers
    }
    ours = {name: speed for name, speed in speeds.items() if name.startswith(OURS)}
    peers = {name: speed for name, speed in speeds.items() if name not in ours}
    chosen = max(ours, key=lambda name: ours[name]["loop_rows_per_cpu_s"]["median"])
    ours_speed = ours[chosen]["loop_rows_per_cpu_s"]["median"]
    fastest_peer = max((speed["loop_rows_per_cpu_s"]["median"] for speed in peers.values()), default=None)
    fastest_float32 = max(
        (
            speed["loop_rows_per_cpu_s"]["median"]
            for name, speed in peers.items()
            if trainers[name].precision == "float32"
        ),
        default=None,
    )
    torcheasyrec = max(
        (speed["loop_rows_per_cpu_s"]["median"] for name, speed in peers.items() if TORCHEASYREC in name),
        default=None,
    )
    float32_speed = ours[OURS]["loop_rows_per_cpu_s"]["median"]
    roofline = {
        precision: roofline_rows_per_s(SHAPE, gflops=gflops, copy_gb_per_s=peaks.copy_gb_per_s)
        for precision, gflops in (("float32", peaks.float32_gflops), ("bfloat16", peaks.bfloat16_gflops))
    }
    return {
        "ours_rows_per_cpu_s": ours_speed,
        "precision": trainers[chosen].precision,
        "peers": {name: speed["loop_rows_per_cpu_s"]["median"] for name, speed in peers.items()},
        "ratio_to_fastest_peer": ours_speed / fastest_peer if fastest_peer else None,
        "float32_ratio_to_fastest_peer": float32_speed / fastest_float32 if fastest_float32 else None,
        "ratio_to_torcheasyrec": ours_speed / torcheasyrec if torcheasyrec else None,
        "float32_ratio_to_torcheasyrec": (
            float32_speed / peers[TORCHEASYREC]["loop_rows_per_cpu_s"]["median"] if torcheasyrec else None
        ),
        "auc": {
            "best_reachable": best_auc,
            **{run.trainer: run.outcome["auc"] for run in runs if run.part == "train"},
        },
        "precisions": _precisions(runs),
        "profile": _profiles(runs, trainers=trainers, speeds=ours, peaks=peaks),
        "roofline": {
            "flop_per_row": SHAPE.flop_per_row,
            "embedding_bytes_per_row": SHAPE.embedding_bytes_per_row,
            **asdict(peaks),
            "rows_per_s": roofline,
            **{
                share: {
                    trainers[name].precision: speed[key]["median"] / roofline[trainers[name].precision]
                    for name, speed in ours.items()
                }
                for share, key in (
                    ("step_share", "step_rows_per_cpu_s"),
                    ("end_to_end_share", "loop_rows_per_cpu_s"),
                )
            },
        },
        "trainers": {
            name: {
                "title": trainers[name].title,
                "precision": trainers[name].precision,
                **speed,
                "versions": next(run.outcome["versions"] for run in runs if run.trainer == name),
                "parameters": next(run.outcome["parameters"] for run in runs if run.trainer == name),
            }
            for name, speed in speeds.items()
        },
    }


def _torcheasyrec(version: str, imports: Sequence[Path], *, bfloat16: bool) -> list[Trainer]:
    """Its trainers; in bfloat16 only where that is no emulation."""
    of = {"float32": TORCHEASYREC} | ({"bfloat16": f"{TORCHEASYREC}_bfloat16"} if bfloat16 else {})
    return [
        Trainer(name, f"TorchEasyRec {version}, {precision}", RUNNER, precision, imports=tuple(imports))
        for precision, name in of.items()
    ]


def _profiles(
    runs: Sequence[Run], *, trainers: dict[str, Trainer], speeds: dict[str, Any], peaks: MachinePeaks
) -> dict[str, Any]:
    """Of each precision, where a step goes; a step has as many rows as one of the benchmark."""
    profiles = {}
    for name, speed in speeds.items():
        precision = trainers[name].precision
        found = [run.outcome["profile"] for run in runs if run.trainer == name and run.outcome["profile"]]
        if not found:
            continue
        rows = found[0]["rows"]
        loaded = [profile["loader"]["rows"] / profile["loader"]["cpu_s"] for profile in found]
        profiles[precision] = step_shares(
            found,
            rows=rows,
            step_ms=1e3 * rows / speed["step_rows_per_cpu_s"]["median"],
            loader_ms=1e3 * rows / statistics.median(loaded),
            shape=SHAPE,
            gflops=peaks.float32_gflops if precision == "float32" else peaks.bfloat16_gflops,
            copy_gb_per_s=peaks.copy_gb_per_s,
        )
    return profiles


def _criteo_like_folder(benchmark: TrainingBenchmark, work: Path, progress: Progress) -> tuple[Path, float]:
    """The folder with the rows in both forms, and the test AUC of the true click probabilities."""
    rows = draw_rows(benchmark.rows, seed=benchmark.seed, progress=progress)
    test = slice(benchmark.parts.first_test_row, None)
    best_auc = float(roc_auc_score(rows.clicked_N[test], rows.probability_N[test]))
    with atomic_folder(work / "criteo_like") as folder:
        write_peer_arrays(rows, benchmark.parts, folder)
        features = folder / "features"
        features.mkdir()
        write_feature_set(rows, benchmark.parts, features)
    return work / "criteo_like", best_auc


def _more_threads(
    ours: Sequence[Trainer], data: Path, benchmark: TrainingBenchmark, progress: Progress
) -> dict[str, Any]:
    """Wall-clock speed of ours on one thread and on several, in turn."""
    load = os.getloadavg()[0]
    runs: dict[str, list[dict[int, Run]]] = {trainer.name: [] for trainer in ours}
    for number in range(benchmark.rounds):
        for trainer in ours:
            progress(f"training: {trainer.title}, threads", number, benchmark.rounds)
            counts = (1, benchmark.threads)
            runs[trainer.name].append(
                {count: _run(trainer, "train_short", data, benchmark, threads=count) for count in counts}
            )
    return {
        "threads": benchmark.threads,
        "rows": benchmark.short_rows,
        "rounds": benchmark.rounds,
        "load_average_before": load,
        "precisions": {
            trainer.precision: thread_speeds(runs[trainer.name], threads=benchmark.threads)
            for trainer in ours
        },
    }


def thread_speeds(pairs: Sequence[dict[int, Run]], *, threads: int) -> dict[str, Any]:
    """Rows a second (wall) of loop and step on one thread and on `threads`, and the ratios within pairs."""
    found: dict[str, Any] = {}
    for part in ("loop", "step"):
        speeds = [
            {count: run.outcome[part]["rows"] / run.outcome[part]["wall_s"] for count, run in pair.items()}
            for pair in pairs
        ]
        found[part] = {
            "one": spread([speed[1] for speed in speeds]),
            "many": spread([speed[threads] for speed in speeds]),
            "ratio": spread([speed[threads] / speed[1] for speed in speeds]),
        }
    return found


def _run(trainer: Trainer, part: str, data: Path, benchmark: TrainingBenchmark, *, threads: int = 1) -> Run:
    emulated = part == "train_tiny"
    measurement = measure_module(
        trainer.module,
        f"--data={data / 'features' if trainer.name.startswith(OURS) else data}",
        f"--train={part}",
        f"--batch-size={benchmark.batch_size}",
        f"--step-batches={1 if emulated else benchmark.step_batches}",
        f"--seed={benchmark.seed}",
        f"--precision={trainer.precision}",
        *((f"--threads={threads}",) if threads > 1 else ()),
        python=trainer.python,
        imports=trainer.imports,
    )
    return Run(trainer.name, part, last_json(measurement), measurement.peak_mib)


def _speeds(runs: Sequence[Run]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, part, clock in (
        ("loop_rows_per_cpu_s", "loop", "cpu_s"),
        ("step_rows_per_cpu_s", "step", "cpu_s"),
        ("loop_rows_per_s", "loop", "wall_s"),
    ):
        speeds = [run.outcome[part]["rows"] / run.outcome[part][clock] for run in runs]
        figures[name] = {**spread(speeds), "runs": len(speeds)}
    return {**figures, "peak_mib": max(run.peak_mib for run in runs)}


def _precisions(runs: Sequence[Run]) -> dict[str, Any] | None:
    """AUC of both precisions after the same rows, and their difference."""
    for part in ("train", "train_tiny"):
        found = {
            run.outcome["precision"]: run for run in runs if run.part == part and run.trainer.startswith(OURS)
        }
        if len(found) == 2:
            aucs = {precision: run.outcome["auc"] for precision, run in sorted(found.items())}
            return {
                "rows": found["float32"].outcome["loop"]["rows"],
                "auc": aucs,
                "difference": aucs["bfloat16"] - aucs["float32"],
            }
    return None
