"""One training run in one folder: config in, model, metrics and test predictions out.

RUN/config.json        what was asked for, resolved
    inputs.json        fingerprints of the feature set and of the tables
    checkpoints/ best/ tensorboard/
    predictions/test.parquet
    metrics.json
    run.json           written last: a run without it is not finished
"""

import hashlib
import json
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from embeddings.training.checkpoint import read_checkpoint
from embeddings.training.precision import resolve_precision
from embeddings.training.ranks import Ranks, decided_by_first, failing_together
from embeddings.training.run_log import Tracker, TrainingLog
from features.artifacts import (
    BusyError,
    StrictModel,
    atomic_write_json,
    differences,
    file_lock,
    replaced_file,
)
from features.batches.loader import BatchLoader
from features.batches.streams import StreamLoader
from features.feature_set import FeatureSet
from ranking.checkpoint import WEIGHTS, load_ranker_weights
from ranking.metrics import RankingMetrics, evaluate
from ranking.model import Ranker, RankerConfig, RankerInputs, build_ranker
from ranking.prediction import predict
from ranking.pretrained_tables import SemanticInputs, join_tables
from ranking.sharded.config import ShardingConfig
from ranking.sharded.loop import loop_of_ranks
from ranking.sharded.plan import OnPlan
from ranking.train import Loader, OnStep, TrainingConfig, train

#: Columns of the test split that travel with the predictions, so that a report needs nothing else.
_SLICE_COLUMNS = (
    "impression_id",
    "user_index",
    "query_index",
    "product_index",
    "slice_has_purchases",
    "slice_seen_product",
    "slice_query_frequency",
)
_EVALUATION_BATCH = 8192


class RunConfig(StrictModel):
    """Everything that decides a run's numbers."""

    #: A name for the records; what tells variants apart is [ranker.semantic].
    variant: str
    #: Of initial weights and of the order of rows; equal seeds give equal bits on a CPU.
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    #: Folder of the feature set, made by `dashclip features build`.
    features: Path
    #: Folder of the product vectors; needs [ranker.semantic].
    product_table: Path | None = None
    #: Folder of the query vectors; needs [ranker.semantic].
    query_table: Path | None = None
    ranker: RankerConfig = RankerConfig()
    training: TrainingConfig = TrainingConfig()
    sharding: ShardingConfig = ShardingConfig()


@dataclass(frozen=True)
class Run:
    """An opened run: its config, data and ranker."""

    config: RunConfig
    feature_set: FeatureSet
    semantic: SemanticInputs | None
    ranker: Ranker

    def loader(
        self,
        split: str,
        *,
        batch_size: int = _EVALUATION_BATCH,
        shuffle_seed: int | None = None,
        id_dropout: float = 0.0,
        ranks: Ranks | None = None,
    ) -> BatchLoader:
        """Batches of one split with what this run's ranker reads; of several ranks, each reads its cover."""
        rows = self.feature_set.manifest.splits[split].rows
        return BatchLoader(
            self.feature_set,
            split,
            batch_size=batch_size,
            semantic=self.semantic.rows if self.semantic else None,
            shuffle_seed=shuffle_seed,
            id_dropout=id_dropout,
            part=ranks.cover_of(rows) if ranks and ranks.count > 1 else None,
        )

    def training_loader(self, ranks: Ranks | None = None) -> Loader:
        """Shuffled batches of the training window: of one process, or this rank's part of global ones."""
        training, seed = self.config.training, self.config.seed
        if ranks is None or not ranks.in_group:
            return self.loader(
                "train", batch_size=training.batch_size, shuffle_seed=seed, id_dropout=training.id_dropout
            )
        return StreamLoader(
            self.feature_set,
            "train",
            batch_size=training.batch_size,
            streams=self.config.sharding.streams,
            rank=ranks.rank,
            ranks=ranks.count,
            semantic=self.semantic.rows if self.semantic else None,
            shuffle_seed=seed,
            id_dropout=training.id_dropout,
        )


def open_run(config: RunConfig, *, device: torch.device | None = None) -> Run:
    """Open the data and build the untrained ranker of `config`."""
    feature_set = FeatureSet.open(config.features)
    semantic = None
    if config.ranker.semantic is not None:
        semantic = join_tables(
            feature_set, product_table=config.product_table, query_table=config.query_table
        )
    ranker = build_ranker(
        config.ranker,
        RankerInputs(
            dense_features=len(feature_set.manifest.dense_columns),
            sparse_rows={column.name: column.rows for column in feature_set.manifest.sparse_columns},
            vectors=semantic.vectors if semantic else {},
            click_rate=feature_set.manifest.splits["train"].ctr,
        ),
        seed=config.seed,
        embedding_learning_rate=config.training.optimizer.embedding_learning_rate,
        device=device,
    )
    return Run(config, feature_set, semantic, ranker)


def load_run(folder: Path, *, features: Path | None = None, device: torch.device | None = None) -> Run:
    """A trained run with the weights of its best evaluation.

    Args:
        features: a feature set to score instead of the run's own, with the same vocabularies and columns.

    Raises:
        CheckpointError: the weights are missing or damaged.
        ValueError: not a run, or its feature set or tables are no longer those it was trained on.
    """
    config = run_config(folder)
    check_same_run(folder, config)
    run = open_run(config.model_copy(update={"features": features or config.features}), device=device)
    best = folder / "best"
    load_ranker_weights(run.ranker, read_checkpoint(best).parts[WEIGHTS], source=best)
    return run


def run_config(folder: Path) -> RunConfig:
    """What the run in `folder` was asked for.

    Raises:
        ValueError: not a run.
    """
    try:
        return RunConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run: it has no config.json") from None


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` got to its end."""
    return (folder / "run.json").exists()


def input_fingerprints(config: RunConfig) -> dict[str, str | None]:
    """What the run reads, as one hash for each of feature set, product table and query table.

    A fingerprint is that of the checksums in the folder's manifest: a rebuild with equal content keeps it.
    """

    def fingerprint(folder: Path | None) -> str | None:
        if folder is None:
            return None
        try:
            checksums = json.loads((folder / "manifest.json").read_text())["checksums"]
        except (FileNotFoundError, KeyError):
            raise ValueError(
                f"{folder} is not a feature set or embedding table: it has no manifest.json"
            ) from None
        return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()

    tables = config.ranker.semantic is not None
    return {
        "features": fingerprint(config.features),
        "product_table": fingerprint(config.product_table) if tables else None,
        "query_table": fingerprint(config.query_table) if tables else None,
    }


def check_both_classes(features: Path) -> None:
    """Refuse a feature set on which no ranker can be trained, stopped or measured, before hours are spent.

    Raises:
        ValueError: a split has clicks only, or none; says which, and what to do.
    """
    for name, split in FeatureSet.open(features, verify=False).manifest.splits.items():
        if 0 < split.clicked < split.rows:
            continue
        which = "none" if split.clicked == 0 else "all"
        purpose = {"train": "learned from", "validation": "used to stop training"}.get(name, "measured on")
        raise ValueError(
            f"{features}: {which} of the {split.rows:,} {name} impressions ({split.start[:10]} to "
            f"{split.end[:10]}) were clicked, so they cannot be {purpose}; give the {name} split more days "
            "under [split] of the feature config, or check the column `clicked`, and build the features again"
        )


def check_same_run(folder: Path, config: RunConfig) -> None:
    """Refuse a folder that holds a run of another config, or of other inputs. An empty folder is fine.

    Raises:
        ValueError: names the file that differs.
    """
    expected = (
        ("config.json", _comparable(config), "the config given"),
        ("inputs.json", input_fingerprints(config), "the feature set or tables as they are now"),
    )
    for name, content, what in expected:
        path = folder / name
        found = _as_now(name, json.loads(path.read_text())) if path.exists() else content
        if found != content:
            raise ValueError(
                f"{path} differs from {what} ({differences(found, content)}), so its numbers would not be "
                f"comparable; restore them, choose another folder, or delete {folder} to train it anew"
            )


def _comparable(config: RunConfig) -> dict[str, Any]:
    """What decides the numbers: not where tables lie, which may change from one resume to the next."""
    content = config.model_dump(mode="json")
    content["sharding"] = {"streams": config.sharding.streams}
    return content


def _as_now(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A recorded config as `_comparable`, with the settings that came later at their defaults."""
    if name != "config.json":
        return content
    try:
        return _comparable(RunConfig.model_validate(content))
    except ValidationError:  # of a later release, or damaged: differs in any case
        return content


def execute_run(
    config: RunConfig,
    folder: Path,
    *,
    environment: dict[str, Any],
    device: torch.device | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    tracker: Tracker | None = None,
    ranks: Ranks | None = None,
    on_plan: OnPlan | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the test split, and write the run folder.

    Args:
        environment: versions, commit, hardware; stored as it is.
        resume: go on with what `folder` holds, or start if it holds nothing.
        tracker: hears of config, evaluations and test, beside TensorBoard.
        ranks: of `torchrun`, each of which makes this call; the first one writes.
        on_plan: called with where the tables lie, before such a training starts.

    Returns:
        The content of metrics.json.

    Raises:
        BusyError: another process is training in `folder`.
        ValueError: `folder` holds a run already (without `resume`), or one with another config; or a split
            of the feature set has clicks only, or none.
        RankLostError: another rank ended without a word.
    """
    with failing_together(ranks or Ranks()), ExitStack() as held:
        check_both_classes(config.features)
        decided_by_first(ranks or Ranks(), lambda: held.enter_context(run_lock(folder)))
        return execute_locked_run(
            config,
            folder,
            environment=environment,
            device=device,
            resume=resume,
            on_step=on_step,
            tracker=tracker,
            ranks=ranks,
            on_plan=on_plan,
        )


def run_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold a run folder, which is made if it is missing: no other process trains in it meanwhile.

    Raises:
        BusyError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = BusyError(f"another process is training in {folder}; wait for it, or stop it")
    return file_lock(folder / ".lock", busy=busy)


def execute_locked_run(
    config: RunConfig,
    folder: Path,
    *,
    environment: dict[str, Any],
    device: torch.device | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    tracker: Tracker | None = None,
    ranks: Ranks | None = None,
    on_plan: OnPlan | None = None,
) -> dict[str, Any]:
    """`execute_run` for whoever holds the `run_lock` of the folder."""
    device, ranks = device or torch.device("cpu"), ranks or Ranks()
    decided_by_first(ranks, lambda: _claim(folder, config, environment, resume=resume))
    # what ranks will share is made on the CPU first: no GPU may have the memory for all of it
    run = open_run(config, device=torch.device("cpu") if ranks.in_group else device)
    parameters = sum(parameter.numel() for parameter in run.ranker.parameters())
    make_loop = None
    if ranks.in_group:
        make_loop = loop_of_ranks(
            run.ranker,
            config.sharding,
            batch_size=config.training.batch_size,
            seed=config.seed,
            ranks=ranks,
            device=device,
            on_plan=on_plan,
        )
    name, params = f"{config.variant}, seed {config.seed}", config.model_dump(mode="json")
    with TrainingLog(folder, tracker=tracker, name=name, params=params, writes=ranks.first) as log:
        progress = train(
            run.ranker,
            config.training,
            training=run.training_loader(ranks),
            validation=run.loader("validation", ranks=ranks),
            folder=folder,
            seed=config.seed,
            device=device,
            resume=resume,
            on_step=on_step,
            log=log,
            make_loop=make_loop,
        )
        clicked_N, logit_N = predict(run.ranker, run.loader("test", ranks=ranks), device=device, ranks=ranks)
        tested = decided_by_first(ranks, lambda: _record_test(run, folder, clicked_N, logit_N).to_dict())
        numbers = {f"test/{name}": value for name, value in tested.items() if isinstance(value, float)}
        log.evaluation(numbers, progress.step)
    metrics = {
        "history": [asdict(evaluation) for evaluation in progress.history],
        "validation": asdict(progress.best) if progress.best else None,
        "test": tested,
        "coverage": {kind: asdict(c) for kind, c in run.semantic.coverage.items()} if run.semantic else {},
    }
    record = {
        "variant": config.variant,
        "seed": config.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": progress.step,
        "rows": progress.rows,
        "training_seconds": progress.seconds,
        "rows_per_s": progress.rows / progress.seconds if progress.seconds else None,
        "precision": resolve_precision(config.training.precision, device),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "ranks": ranks.count if ranks.in_group else None,
        "parameters": parameters,
    }

    def finish() -> None:
        atomic_write_json(folder / "metrics.json", metrics)
        atomic_write_json(folder / "run.json", record)

    decided_by_first(ranks, finish)
    return metrics


def _claim(folder: Path, config: RunConfig, environment: dict[str, Any], *, resume: bool) -> None:
    if (folder / "config.json").exists():
        if not resume:
            raise ValueError(
                f"{folder} already holds a run; pass --resume to go on with it, or choose another folder"
            )
        check_same_run(folder, config)
    atomic_write_json(folder / "inputs.json", input_fingerprints(config))
    atomic_write_json(folder / "config.json", config.model_dump(mode="json"))
    if not (folder / "environment.json").exists():  # a resumed run was made where it began
        atomic_write_json(folder / "environment.json", environment)


def _record_test(
    run: Run, folder: Path, clicked_N: NDArray[np.int8], logit_N: NDArray[np.float32]
) -> RankingMetrics:
    """Write the test predictions, and measure them."""
    table = pa.concat_tables(
        pq.read_table(path, columns=list(_SLICE_COLUMNS)) for path in run.feature_set.split_files("test")
    )
    table = table.append_column("clicked", pa.array(clicked_N)).append_column("logit", pa.array(logit_N))
    with replaced_file(folder / "predictions" / "test.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return evaluate(
        clicked_N, logit_N, queries_N=_column(table, "query_index"), users_N=_column(table, "user_index")
    )


def _column(table: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = table[name].to_numpy()
    return values
