"""The two training stages as runs in a folder: resumable, fingerprinted, with what was trained on what.

A run folder has `encoder/` (the result), `training.json` (settings, inputs, history), `checkpoints/` while it
runs, and for stage 2 `tuples/train` and `tuples/validation`.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embeddings.catalog.holdout import TRAIN, VALIDATION, HoldoutConfig, product_roles, query_roles
from embeddings.catalog.products import Modality, ProductCatalog
from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.config import EncoderConfig, Size
from embeddings.encoders.dashclip import DashClipEncoder, Stage, is_encoder
from embeddings.relevance.build_tuples import TupleConfig, TupleSet, build_tuples, read_grades
from embeddings.stages.completion_training import complete
from embeddings.stages.fingerprints import settings_fingerprint, table_fingerprint, weights_fingerprint
from embeddings.stages.stage1 import PretrainConfig, PretrainTask
from embeddings.stages.stage2 import AlignConfig, AlignTask, Tuples
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask, TextWarmupTask, WarmupConfig
from embeddings.stages.whitening import whiten
from embeddings.training.loop import OptimizerConfig, Report, Task, TrainingOutcome, train
from embeddings.training.ranks import Ranks, barrier, join_ranks
from features.artifacts import refuse_foreign_folder, replaced_file
from features.inputs.tables import table_files
from features.progress import Progress, silent

ENCODER, TRAINING, CHECKPOINTS, TUPLES = "encoder", "training.json", "checkpoints", "tuples"

#: Tokens learned from a catalogue, special ones included; fewer when the texts have fewer.
VOCABULARY: dict[Size, int] = {"tiny": 1_000, "small": 4_000, "base": 30_524}

ShowReport = Callable[[Report], None]


class StageError(ValueError):
    """A stage that cannot start: its inputs or its folder are not what they must be."""


@dataclass(frozen=True)
class InputConfig:
    """What an encoder sees of a data folder, and what is kept away from it."""

    modalities: tuple[Modality, ...] = ("image", "text")
    text_columns: tuple[str, ...] = ("title",)
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)


@dataclass(frozen=True, eq=False)
class StageRun:
    """A finished run."""

    folder: Path
    encoder: DashClipEncoder
    #: None when the folder was complete already.
    outcome: TrainingOutcome | None


def train_tokenizer(
    data: Path, *, size: Size, inputs: InputConfig, vocab_size: int | None = None
) -> TextTokenizer:
    """WordPiece learned from the titles and queries that may be trained on, `VOCABULARY` unless given.

    Raises:
        InputError, CatalogError, RelevanceError: the tables cannot be read.
    """
    catalog = ProductCatalog.open(data, text_columns=inputs.text_columns)
    seen_P = product_roles(catalog.ids, inputs.holdout) == TRAIN
    texts = [title for title, seen in zip(catalog.titles, seen_P, strict=True) if seen]
    if table_files(data, "relevance"):
        queries = read_grades(data).queries
        seen_Q = query_roles(queries, inputs.holdout) == TRAIN
        texts += [query for query, seen in zip(queries.to_pylist(), seen_Q, strict=True) if seen]
    return TextTokenizer.train(texts, vocab_size=vocab_size or VOCABULARY[size])


def new_encoder(
    data: Path,
    *,
    size: Size,
    inputs: InputConfig,
    seed: int,
    vocab_size: int | None = None,
    architecture: Mapping[str, bool | float | str] | None = None,
) -> DashClipEncoder:
    """Random weights and a tokenizer learned from the data; `architecture` changes fields of the size."""
    tokenizer = train_tokenizer(data, size=size, inputs=inputs, vocab_size=vocab_size)
    config = EncoderConfig.preset(size, vocab_size=tokenizer.vocab_size, **(architecture or {}))
    return DashClipEncoder.new(config, tokenizer, seed=seed)


def warm_up(
    data: Path,
    folder: Path,
    *,
    start: DashClipEncoder,
    config: WarmupConfig,
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
) -> StageRun:
    """Warm-up of an encoder without published weights: of text, or of images if the config is for those.

    Titles are read whatever the modalities: they teach the text encoder that queries start from. Folders as
    in `pretrain`.
    """
    inputs = inputs or InputConfig()
    ranks = join_ranks(device)
    of_images = isinstance(config, ImageWarmupConfig)
    settings = {
        "stage": "image_warmup" if of_images else "warmup",
        "config": config.model_dump(mode="json"),
        "inputs": _inputs_record(inputs),
        "start": weights_fingerprint(start),
        "products": table_fingerprint(data, "products"),
        "ranks": ranks.count,
    }
    done = _finished(folder, settings)
    if done is not None:
        return done
    modalities: tuple[Modality, ...] = ("image", "text") if of_images else ("text",)
    catalog = ProductCatalog.open(data, modalities=modalities, text_columns=inputs.text_columns)
    encoder = _copy(start)
    common: dict[str, Any] = {
        "usable_P": product_roles(catalog.ids, inputs.holdout) == TRAIN,
        "device": _device(device),
        "ranks": ranks,
    }
    task: TextWarmupTask | ImageWarmupTask
    if isinstance(config, ImageWarmupConfig):
        task = ImageWarmupTask(encoder, catalog, config=config, **common)
    else:
        task = TextWarmupTask(encoder, catalog, config=config, **common)
    counts = {"training_products": len(task.train), "evaluation_products": len(task.evaluation)}
    outcome = _train(task, folder, settings, config, ranks, show)
    if isinstance(task, ImageWarmupTask):
        counts["unreadable_images"] = len(task.unreadable)
    encoder.product.start_product_proj()
    return _finish(folder, encoder, "initial", settings, outcome, counts, ranks)


def pretrain(
    data: Path,
    folder: Path,
    *,
    start: DashClipEncoder,
    config: PretrainConfig,
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
) -> StageRun:
    """Stage 1 on the catalogue of `data`; a finished folder is opened, an interrupted one resumed.

    `start` stays as it is. The products table is compared with that of an earlier call, image files are not.

    Raises:
        StageError: the folder holds a finished run of other settings or inputs.
        CheckpointError: it holds an interrupted one, or a damaged checkpoint.
        EmbeddingTableError: it holds something else.
        ValueError: too few products have both an image and a title.
    """
    inputs = inputs or InputConfig()
    ranks = join_ranks(device)
    settings = {
        "stage": "pretrain",
        "config": config.model_dump(mode="json"),
        "inputs": _inputs_record(inputs),
        "start": weights_fingerprint(start),
        "products": table_fingerprint(data, "products"),
        "ranks": ranks.count,
    }
    done = _finished(folder, settings)
    if done is not None:
        return done
    catalog = ProductCatalog.open(data, modalities=inputs.modalities, text_columns=inputs.text_columns)
    encoder = _copy(start)
    task = PretrainTask(
        encoder,
        catalog,
        config=config,
        usable_P=product_roles(catalog.ids, inputs.holdout) == TRAIN,
        device=_device(device),
        ranks=ranks,
    )
    counts = {
        "training_products": len(task.train),
        "evaluation_products": len(task.evaluation),
        "products_without_image_or_title": task.left_out,
    }
    outcome = _train(task, folder, settings, config, ranks, show)
    counts["unreadable_images"] = len(task.unreadable)
    encoder.product.start_product_proj()
    return _finish(folder, encoder, "pretrained", settings, outcome, counts, ranks)


def align(
    data: Path,
    folder: Path,
    *,
    start: DashClipEncoder,
    config: AlignConfig,
    tuple_config: TupleConfig | None = None,
    sources: Sequence[str] = ("human", "llm"),
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    progress: Progress = silent,
) -> StageRun:
    """Stage 2 on the relevance data of `data`; a finished folder is opened, an interrupted one resumed.

    `start` stays as it is; without a query encoder it is given one. `show` hears of the training, `progress`
    of what comes before and after it: tuples, whitening, completion.

    Raises:
        StageError: the folder holds a finished run of other settings or inputs.
        CheckpointError: it holds an interrupted one, or a damaged checkpoint.
        EmbeddingTableError, RelevanceError: it holds something else, or no tuple can be made.
        ValueError: there are too few tuples.
    """
    inputs, tuple_config = inputs or InputConfig(), tuple_config or TupleConfig()
    ranks = join_ranks(device)
    settings = {
        "stage": "align",
        "config": config.model_dump(mode="json"),
        "tuples": tuple_config.model_dump(mode="json"),
        "sources": list(sources),
        "inputs": _inputs_record(inputs),
        "start": weights_fingerprint(start),
        "products": table_fingerprint(data, "products"),
        "relevance": table_fingerprint(data, "relevance"),
        "ranks": ranks.count,
    }
    done = _finished(folder, settings)
    if done is not None:
        return done
    catalog = ProductCatalog.open(data, modalities=inputs.modalities, text_columns=inputs.text_columns)
    grades = read_grades(data, sources=tuple(sources))
    roles_Q = query_roles(grades.queries, inputs.holdout)
    seen_P = product_roles(catalog.ids, inputs.holdout) == TRAIN
    sets = {}
    for name, role in (("train", TRAIN), ("validation", VALIDATION)):
        target = folder / TUPLES / name
        if ranks.first:
            masks = {"product_mask": seen_P, "query_mask": roles_Q == role}
            build_tuples(
                grades,
                catalog.aisles,
                target,
                config=tuple_config,
                seed=config.seed,
                progress=progress,
                **masks,
            )
        barrier(ranks)
        sets[name] = TupleSet.open(target, product_ids=catalog.ids)
    encoder = _copy(start if start.query is not None else start.with_query_encoder())
    whole_titles = ProductCatalog.open(data, modalities=("text",), text_columns=inputs.text_columns)
    completing = encoder.config.fusion == "completion"
    task = AlignTask(
        encoder,
        whole_titles if completing else catalog,
        Tuples(sets["train"], sets["validation"]),
        config=config,
        grades=grades,
        query_titles=whole_titles.titles,
        device=_device(device),
        ranks=ranks,
    )
    # The completion comes after the training: a change of it alone does not start that anew.
    training = settings | {"config": config.model_dump(mode="json", exclude={"completion"})}
    outcome = _train(task, folder, training, config, ranks, show)
    counts: dict[str, float | None] = {
        "training_tuples": len(sets["train"]),
        "validation_tuples": len(sets["validation"]),
        "unreadable_images": len(task.unreadable),
    }
    if config.whitening:
        counts |= whiten(
            encoder,
            whole_titles if completing else catalog,
            product_N=np.flatnonzero(seen_P),
            queries=grades.queries.filter(pa.array(roles_Q == TRAIN)).to_pylist(),
            power=config.whitening_power,
            seed=config.seed,
            progress=progress,
        )._asdict()
    if completing and "image" in inputs.modalities:
        counts |= complete(
            encoder,
            catalog,
            whole_titles=whole_titles.titles,
            product_N=np.flatnonzero(seen_P),
            config=config.completion,
            seed=config.seed,
            progress=progress,
        )._asdict()
    return _finish(folder, encoder, "aligned", settings, outcome, counts, ranks)


def _train(
    task: Task,
    folder: Path,
    settings: dict[str, Any],
    config: OptimizerConfig,
    ranks: Ranks,
    show: ShowReport | None,
) -> TrainingOutcome:
    return train(
        task,
        folder / CHECKPOINTS,
        config=config,
        fingerprint=settings_fingerprint(settings),
        ranks=ranks,
        progress=show,
    )


def _finish(
    folder: Path,
    encoder: DashClipEncoder,
    stage: Stage,
    settings: dict[str, Any],
    outcome: TrainingOutcome,
    counts: Mapping[str, float | None],
    ranks: Ranks,
) -> StageRun:
    if ranks.first:
        trained_on = {"settings": settings, "counts": dict(counts), "previous": encoder.trained_on}
        encoder.save(folder / ENCODER, stage=stage, trained_on=trained_on)
        record = {"settings": settings, "counts": dict(counts), "outcome": asdict(outcome)}
        _write_json(folder / TRAINING, record)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    barrier(ranks)
    return StageRun(folder, DashClipEncoder.load(folder / ENCODER), outcome)


def _finished(folder: Path, settings: dict[str, Any]) -> StageRun | None:
    """The finished run in the folder, if there is one.

    Raises:
        StageError: it is of other settings or inputs.
    """
    path = folder / TRAINING
    if not path.is_file():
        # Now rather than after hours of training.
        refuse_foreign_folder(folder / ENCODER, ours=is_encoder)
        return None
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError):
        raise StageError(
            f"{path} is not the record of a training run; choose another output folder"
        ) from None
    if found != settings:
        differing = sorted(
            key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key)
        )
        raise StageError(
            f"{folder} holds a finished run with another {', '.join(differing)}; delete it or choose another "
            "output folder"
        )
    return StageRun(folder, DashClipEncoder.load(folder / ENCODER), None)


def _copy(encoder: DashClipEncoder) -> DashClipEncoder:
    """The same with weights of its own, which training changes; a completion would not fit them any more."""
    product = copy.deepcopy(encoder.product)
    product.completion = None
    return replace(encoder, product=product, query=copy.deepcopy(encoder.query))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise StageError("device cuda was asked for, but torch sees no CUDA device; use device cpu")
    return torch.device(name)


def _inputs_record(inputs: InputConfig) -> dict[str, Any]:
    return {
        "modalities": list(inputs.modalities),
        "text_columns": list(inputs.text_columns),
        "holdout": inputs.holdout.model_dump(mode="json"),
    }


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
