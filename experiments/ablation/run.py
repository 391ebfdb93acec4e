"""One run of the ablation: stage 2, vectors, metrics. Each function is a job in a process of its own."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.grades import read_grades
from embeddings.stages.run_folder import ENCODER, ShowReport
from embeddings.tables.narrow import bytes_per_vector, narrow_table
from embeddings.training.loop import Report
from experiments.encoders.config import EncodersConfig
from experiments.encoders.first_encoder import first_encoder
from experiments.encoders.pair_measures import PairScores, PairTest, TooFewPairsError
from experiments.encoders.pipeline import (
    encode_tables,
    measure_retrieval,
    run_align,
    run_pretrain,
)
from experiments.encoders.table1 import SliceResult, Table1
from features.artifacts import atomic_write_json
from features.progress import Progress

METRICS_FILE = "metrics.json"
#: Where grades of people are all that is known: figures of their pairs, each with its resamples of queries.
PAIRS_FILE = "pairs.json"
PAIR_AUC, PAIR_F1 = "pair_auc", "pair_macro_f1"
#: In the folder of stage 1, with or without one.
WARMUP = "warmup"
#: Seconds spent are saved this often, so that a killed job loses little of the count.
SAVE_EVERY_S = 10.0


def run_stage_1(data: Path, folder: Path, config: EncodersConfig, device: str, tell: Progress) -> None:
    """Stage 1 to `folder`, or the warm-ups alone without it; finished ones are left as they are."""
    seconds = SpentSeconds(folder / "seconds.json")
    with seconds.on("stage_1") as tick:
        if config.pretrain is None:
            show = _show(tell, "warm-ups", tick)
            first_encoder(data, folder / WARMUP, config, device=device, show=show)
        else:
            run_pretrain(data, folder, config, device=device, show=_show(tell, "stage 1", tick))


def encoder_before_stage_2(folder: Path, config: EncodersConfig) -> DashClipEncoder:
    """What `run_stage_1` left in `folder` with that config."""
    if config.pretrain is not None:
        return DashClipEncoder.load(folder / ENCODER)
    images = config.image_warmup is not None and "image" in config.modalities
    return DashClipEncoder.load(folder / WARMUP / ("image" if images else "text") / ENCODER)


def run_variant(
    data: Path,
    folder: Path,
    config: EncodersConfig,
    tell: Progress,
    *,
    stage_1: Path | None,
    identity: dict[str, Any],
    k: int,
    widths: Sequence[int],
    device: str,
) -> None:
    """Stage 2 from what `run_stage_1` left in `stage_1` (from scratch if None), tables, last metrics.json.

    Without stage 2 in the config the tables are of what it would have started from.

    Args:
        identity: what else goes into metrics.json: whose results these are.
        widths: at which the first coordinates are measured alone, if the encoder has more.
    """
    spent = SpentSeconds(folder / "seconds.json")
    start = None if stage_1 is None else encoder_before_stage_2(stage_1, config)
    if config.align is None:
        assert start is not None
        encoder = start
    else:
        with spent.on("stage_2") as tick:
            encoder = run_align(
                data,
                folder / "align",
                config,
                start=start,
                device=device,
                show=_show(tell, "stage 2", tick),
                progress=_with_tick(tell, tick),
            ).encoder
    tables = folder / "tables"
    with spent.on("encode") as tick:
        grades = read_grades(data)
        queries, held_out_Q = grades.queries, grades.query_roles(config.holdout) != TRAIN
        encode_tables(
            data,
            tables,
            encoder,
            inputs=config.inputs,
            queries=queries.filter(pa.array(held_out_Q)),
            device=device,
            progress=_with_tick(tell, tick),
        )
    with spent.on("measure"):
        measured = measure(data, tables, config, k=k, widths=widths, tell=tell)
        if not measured["simulated"]:
            tell("pairs", 0, 1)
            pairs = measure_pairs(data, tables, config)
            atomic_write_json(folder / PAIRS_FILE, {name: values.tolist() for name, values in pairs.items()})
    shared = {} if stage_1 is None else SpentSeconds(stage_1 / "seconds.json").spent
    content = {
        **identity,
        "config": config.model_dump(mode="json"),
        "stage_1": stage_1 and stage_1.name,
        "encoder_id": encoder.encoder_id,
        "k": k,
        "seconds": shared | spent.spent,
        **measured,
    }
    atomic_write_json(folder / METRICS_FILE, content)


def measure(
    data: Path, tables: Path, config: EncodersConfig, *, k: int, widths: Sequence[int], tell: Progress
) -> dict[str, Any]:
    """Metrics of the test and the validation queries, and at each width what a vector costs and is worth.

    Queries are the same in all runs, so that the spread over seeds is what counts: no bootstrap here.
    """
    found = EmbeddingTable.load(tables / "products", verify=False)
    folders = {found.dim: tables}
    for width in sorted(width for width in widths if width < found.dim):
        folders[width] = tables / f"first-{width}"
        for kind in ("products", "queries"):
            wide = EmbeddingTable.load(tables / kind, verify=False)
            narrow_table(wide, folders[width] / kind, width)
    own = str(found.dim)

    def table1(role: int, rows: dict[str, Path]) -> Table1:
        return measure_retrieval(
            data,
            rows,
            holdout=config.holdout,
            role=role,
            baselines=False,
            candidate=own,
            k=k,
            resamples=1,
            progress=tell,
        )

    test = table1(TEST, {str(width): folder for width, folder in folders.items()})
    validation = table1(VALIDATION, {own: tables})
    return {
        "simulated": test.simulated,
        "description": test.description,
        "test": _measured(test, own),
        "validation": _measured(validation, own),
        "widths": {
            str(width): {
                "bytes_per_vector": bytes_per_vector(
                    EmbeddingTable.load(folders[width] / "products", verify=False)
                ),
                "metrics": _means(test, str(width)),
            }
            for width in sorted(folders)
        },
    }


def measure_pairs(data: Path, tables: Path, config: EncodersConfig) -> dict[str, npt.NDArray[np.float64]]:
    """What the cosine says of the pairs that people graded: AUC and macro F1 [R], the estimate first.

    Nothing is learnt but two cutoffs, on validation queries. All runs on the same data see the same draws.

    Returns:
        By name; nothing where held-out queries lack high or irrelevant pairs.
    """
    try:
        test = PairTest.read(data, config.holdout)
    except TooFewPairsError:
        return {}
    of = (EmbeddingTable.load(tables / kind, verify=False) for kind in ("products", "queries"))
    score_N = PairScores.of_tables(test.graded, *of).score_N
    return {PAIR_AUC: test.auc(score_N), PAIR_F1: test.macro_f1(test.by_cutoffs(score_N))}


def _measured(table: Table1, row: str) -> dict[str, Any]:
    return {
        "queries": table.queries,
        "metrics": _means(table, row),
        "slices": {
            title: {"queries": found.queries, "metrics": _means(found, row)}
            for title, found in table.slices.items()
        },
    }


def _means(found: SliceResult, row: str) -> dict[str, float]:
    """A metric without a value (no query has a highly relevant product) is left out."""
    return {metric: interval.mean for metric, interval in found.rows[row].items() if interval is not None}


class SpentSeconds:
    """Seconds spent on each part of a job, kept in a file: a killed job adds to what it had spent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    @contextmanager
    def on(self, part: str) -> Iterator[Callable[[], None]]:
        """Count the block; it calls what is yielded now and then, so that the file follows."""
        before, started = self.spent.get(part, 0.0), time.perf_counter()
        saved = started

        def save() -> None:
            nonlocal saved
            saved = time.perf_counter()
            self.spent[part] = round(before + saved - started, 2)
            atomic_write_json(self.path, self.spent)

        def tick() -> None:
            if time.perf_counter() - saved >= SAVE_EVERY_S:
                save()

        yield tick
        save()


def _show(tell: Progress, stage: str, tick: Callable[[], None]) -> ShowReport:
    def show(report: Report) -> None:
        tell(stage, report.step, report.total_steps)
        tick()

    return show


def _with_tick(tell: Progress, tick: Callable[[], None]) -> Progress:
    def told(stage: str, done: int, total: int) -> None:
        tell(stage, done, total)
        tick()

    return told
