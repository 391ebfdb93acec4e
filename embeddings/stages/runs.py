"""The warm-ups and the two training stages as runs in a folder: resumable, with what was trained on what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings.catalog.holdout import TRAIN, query_groups
from embeddings.catalog.products import Modality, ProductCatalog
from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.config import EncoderConfig, Size
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import TupleConfig, read_grades
from embeddings.relevance.grades import sources_of
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.completion_training import complete
from embeddings.stages.graded_inputs import GradedInputs
from embeddings.stages.product_parts import ProductParts, has_image_and_title
from embeddings.stages.run_folder import (
    InputConfig,
    ShowReport,
    StageError,
    StageRun,
    copy_of,
    device_named,
    finish,
    finished_run,
    is_finished,
    settings_of,
    train_in,
)
from embeddings.stages.stage1 import PretrainConfig, PretrainTask, products_of_stage1
from embeddings.stages.stage2 import AlignTask
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask, TextWarmupTask, WarmupConfig
from embeddings.stages.whitening import whiten
from embeddings.training.ranks import join_ranks
from embeddings.training.run_log import Tracker
from features.inputs.tables import table_files
from features.progress import Progress, silent

#: Tokens learned from a catalogue, special ones included; fewer when the texts have fewer.
VOCABULARY: dict[Size, int] = {"tiny": 1_000, "small": 4_000, "base": 30_524}

#: Titles that are looked at together.
TEXT_CHUNK = 4096

#: An encoder to start from, or a call that makes it, as by warm-ups.
Start = DashClipEncoder | Callable[[], DashClipEncoder]


def training_texts(data: Path, inputs: InputConfig) -> tuple[list[str], list[str]]:
    """Titles and queries that may be trained on.

    Raises:
        InputError, CatalogError, RelevanceError: the tables cannot be read.
    """
    catalog = ProductCatalog.open(data, text_columns=inputs.text_columns)
    seen_P = ProductParts.of(catalog, inputs.holdout).train_P
    titles = [title for title, seen in zip(catalog.titles, seen_P, strict=True) if seen]
    queries: list[str] = []
    if table_files(data, "relevance"):
        grades = read_grades(data)
        seen_Q = grades.query_roles(inputs.holdout) == TRAIN
        queries = [query for query, seen in zip(grades.queries.to_pylist(), seen_Q, strict=True) if seen]
    return titles, queries


def new_encoder(
    data: Path,
    *,
    size: Size,
    inputs: InputConfig,
    seed: int,
    vocab_size: int | None = None,
    architecture: Mapping[str, bool | float | str] | None = None,
) -> DashClipEncoder:
    """Random weights and a WordPiece tokenizer learned from titles and queries, `VOCABULARY` unless given.

    `architecture` changes fields of the size. Character n-grams too rare in the titles start at zero.

    Raises:
        InputError, CatalogError, RelevanceError: the tables cannot be read.
    """
    titles, queries = training_texts(data, inputs)
    tokenizer = TextTokenizer.train([*titles, *queries], vocab_size=vocab_size or VOCABULARY[size])
    config = EncoderConfig.preset(size, vocab_size=tokenizer.vocab_size, **(architecture or {}))
    encoder = DashClipEncoder.new(config, tokenizer, seed=seed)
    ngrams = encoder.product.text.ngrams
    if ngrams is not None:
        starts = range(0, len(titles), TEXT_CHUNK)
        chunks = (encoder.title_tokens(titles[start : start + TEXT_CHUNK]) for start in starts)
        ngrams.forget_rare((chunk.ids_BT, chunk.mask_BT) for chunk in chunks)
    return encoder


def warm_up(
    data: Path,
    folder: Path,
    *,
    start: DashClipEncoder,
    config: WarmupConfig,
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
) -> StageRun:
    """Warm-up of an encoder without published weights: of text, or of images if the config is for those.

    Titles are read whatever the modalities: they teach the text encoder that queries start from. Folders as
    in `pretrain`.
    """
    inputs = inputs or InputConfig()
    ranks = join_ranks(device)
    of_images = isinstance(config, ImageWarmupConfig)
    stage = "image_warmup" if of_images else "warmup"
    settings = settings_of(stage, data, start=start, config=config, inputs=inputs, ranks=ranks)
    done = finished_run(folder, settings)
    if done is not None:
        return done
    modalities: tuple[Modality, ...] = ("image", "text") if of_images else ("text",)
    whole = ProductCatalog.open(data, text_columns=inputs.text_columns)
    catalog = whole.only(modalities)
    # Until stage 2 a product is the mean of its image and its title, as of an encoder without published text.
    encoder = replace(copy_of(start), query=None)
    common: dict[str, Any] = {
        "parts": ProductParts.of(whole, inputs.holdout),
        "device": device_named(device),
        "ranks": ranks,
    }
    task: TextWarmupTask | ImageWarmupTask
    if isinstance(config, ImageWarmupConfig):
        task = ImageWarmupTask(encoder, catalog, config=config, **common)
    else:
        task = TextWarmupTask(encoder, catalog, config=config, **common)
    counts = {"training_products": len(task.train), "evaluation_products": len(task.evaluation)}
    outcome = train_in(task, folder, settings, config, ranks, show, tracker)
    if isinstance(task, ImageWarmupTask):
        counts["unreadable_images"] = len(task.unreadable)
    encoder.product.start_product_proj()
    return finish(folder, encoder, "initial", settings, outcome, counts, ranks)


def pretrain(
    data: Path,
    folder: Path,
    *,
    start: Start,
    config: PretrainConfig,
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
) -> StageRun:
    """Stage 1 on the catalogue of `data`; a finished folder is opened, an interrupted one resumed.

    `start` stays as it is; a call that makes it comes after the products have been found to be enough, as it
    may take hours. The products table is compared with that of an earlier call, image files are not.

    Raises:
        StageError: the folder holds a finished run of other settings or inputs.
        CheckpointError: it holds an interrupted one, or a damaged checkpoint.
        EmbeddingTableError: it holds something else.
        ValueError: too few products have both an image and a title.
    """
    inputs = inputs or InputConfig()
    ranks = join_ranks(device)
    if not isinstance(start, DashClipEncoder):
        if not is_finished(folder):
            whole = ProductCatalog.open(data, text_columns=inputs.text_columns)
            products_of_stage1(ProductParts.of(whole, inputs.holdout), has_image_and_title(whole))
        start = start()
    settings = settings_of("pretrain", data, start=start, config=config, inputs=inputs, ranks=ranks)
    done = finished_run(folder, settings)
    if done is not None:
        return done
    whole = ProductCatalog.open(data, text_columns=inputs.text_columns)
    # Stage 1 trains the text encoder, of which a query encoder is a copy that stage 2 makes.
    encoder = replace(copy_of(start), query=None)
    task = PretrainTask(
        encoder,
        whole.only(inputs.modalities),
        config=config,
        parts=ProductParts.of(whole, inputs.holdout),
        device=device_named(device),
        ranks=ranks,
    )
    counts = {
        "training_products": len(task.train),
        "evaluation_products": len(task.evaluation),
        "products_without_image_or_title": task.left_out,
    }
    outcome = train_in(task, folder, settings, config, ranks, show, tracker)
    counts["unreadable_images"] = len(task.unreadable)
    encoder.product.start_product_proj()
    return finish(folder, encoder, "pretrained", settings, outcome, counts, ranks)


def align(
    data: Path,
    folder: Path,
    *,
    start: Start,
    config: AlignConfig,
    tuple_config: TupleConfig | None = None,
    sources: Sequence[str] | None = None,
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
    progress: Progress = silent,
) -> StageRun:
    """Stage 2 on the relevance data of `data`; a finished folder is opened, an interrupted one resumed.

    `start` stays as it is; without a query encoder it is given one. A call that makes it comes after the
    tuples, as it may take hours. `show` hears of the training, `progress` of what comes before and after it:
    tuples, whitening, completion.

    Args:
        sources: whose grades count, the first wins; those of `sources_of` if None.

    Raises:
        StageError: the folder holds a finished run of other settings or inputs, or there are no grades.
        CheckpointError: it holds an interrupted one, or a damaged checkpoint.
        EmbeddingTableError, RelevanceError: it holds something else, or no tuple can be made.
        ValueError: there are too few tuples.
    """
    inputs, tuple_config = inputs or InputConfig(), tuple_config or TupleConfig()
    ranks = join_ranks(device)
    if sources is None:
        sources = sources_of(data) if table_files(data, "relevance") else ()
    read = partial(
        GradedInputs.read, data, config=tuple_config, sources=sources, inputs=inputs, seed=config.seed
    )
    graded = None
    if not isinstance(start, DashClipEncoder):
        if not is_finished(folder):
            graded = read()
            graded.check(folder, ranks=ranks)
        start = start()
    if start.config.kept_dims is not None:
        raise StageError(
            f"{start.encoder_id} has been through stage 2, which kept {start.config.kept_dims} of its "
            f"{start.config.embedding_dim} dimensions; start from the encoder of stage 1"
        )
    if config.kept_dims > start.config.embedding_dim:
        raise StageError(
            f"kept_dims ({config.kept_dims}) must not exceed the {start.config.embedding_dim} dimensions of "
            f"{start.encoder_id}, from which stage 2 starts"
        )
    settings = settings_of(
        "align",
        data,
        start=start,
        config=config,
        inputs=inputs,
        ranks=ranks,
        tables=("products", "relevance"),
        more={"tuples": tuple_config.model_dump(mode="json"), "sources": list(sources)},
    )
    done = finished_run(folder, settings)
    if done is not None:
        return done
    graded = graded or read()
    grades, parts = graded.grades, graded.parts
    # Of what the encoder tells apart: its tokenizer may see one query where spellings differ.
    group_Q = query_groups(grades.queries, start.query_tokens)
    role_Q = graded.roles(group_Q)
    tuples = graded.tuples(folder, group_Q, ranks=ranks, progress=progress)
    encoder = copy_of(start if start.query is not None else start.with_query_encoder())
    catalog, whole_titles = graded.products.only(inputs.modalities), graded.products.only(("text",))
    completing = encoder.config.fusion == "completion"
    task = AlignTask(
        encoder,
        whole_titles if completing else catalog,
        tuples,
        config=config,
        grades=grades,
        query_titles=whole_titles.titles,
        validation_P=parts.validation_P,
        trained_G=(role_Q[grades.query_G] == TRAIN) & parts.train_P[grades.product_G],
        device=device_named(device),
        ranks=ranks,
    )
    # The completion comes after the training: a change of it alone does not start that anew.
    training = settings | {"config": config.model_dump(mode="json", exclude={"completion"})}
    outcome = train_in(task, folder, training, config, ranks, show, tracker)
    counts: dict[str, float | None] = {
        "training_tuples": len(tuples.train),
        "validation_tuples": len(tuples.validation),
        "unreadable_images": len(task.unreadable),
    }
    if config.whitening:
        counts |= whiten(
            encoder,
            whole_titles if completing else catalog,
            product_N=np.flatnonzero(parts.train_P),
            queries=grades.queries.filter(pa.array(role_Q == TRAIN)).to_pylist(),
            power=config.whitening_power,
            kept=config.kept_dims or None,
            seed=config.seed,
            progress=progress,
        )._asdict()
    if completing and "image" in inputs.modalities:
        counts |= complete(
            encoder,
            catalog,
            whole_titles=whole_titles.titles,
            parts=parts,
            config=config.completion,
            seed=config.seed,
            progress=progress,
        )._asdict()
    return finish(folder, encoder, "aligned", settings, outcome, counts, ranks)
