"""What one simulated world is made of, part by part. Each function is a job in a process of its own.

WORLD/encoders/                 both stages; the same for every preset of the world
      <preset>/                 laid out like a demo, so that its sweep reads and reports like any other
          data/ features/ lsa/ … embeddings/ table1.json <variant>/seed-<n>/

A further encoder seed has `encoders-<seed>`, `embeddings-<seed>` and `table1-<seed>.json` beside them; a
rival recipe has `encoders-<name>`, and its tables in <preset>/<name>.
A part that is whole is left as it is, and an interrupted one goes on where it can.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from embeddings.catalog.holdout import TRAIN
from embeddings.embedding_table import is_table
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.grades import read_grades
from embeddings.stages.run_folder import ENCODER, is_finished
from embeddings.tables.lsa import embed_lsa
from embeddings.tables.tfidf import embed_tfidf
from experiments.ablation.plan import data_checksum
from experiments.ablation.run import run_stage_1
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import encode_tables, measure_retrieval, run_align
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import DESCRIPTION, generate
from experiments.marketplace.oracle import embed_truth
from experiments.runtime.environment import environment
from features.artifacts import MANIFEST
from features.inputs.tables import InputTables
from features.inputs.validation import check_or_raise
from features.offline.build import build
from features.progress import Progress
from features.schema import FeatureConfig

DATA, FEATURES, EMBEDDINGS, ENCODERS = "data", "features", "embeddings", "encoders"
PRETRAIN, ALIGN = "pretrain", "align"
#: Rows of table 1.
LSA, STAGE_1, DASHCLIP = "lsa", "stage1", "dashclip"
#: Width of the LSA vectors, of the random tables and of the true facts: that of the encoders at size small.
DIM = 128
#: Width of the character TF-IDF, of which only cosines are read; see `embeddings.tables.tfidf` for its error.
TFIDF_DIM = 512
MEMORY_LIMIT = "2GB"

#: How the tables are made that need no trained encoder, by the name of their folder.
TABLES: dict[str, Callable[[Path, Path, Progress], Any]] = {
    "lsa": lambda data, out, tell: embed_lsa(data, out, dim=DIM, progress=tell),
    "tfidf": lambda data, out, tell: embed_tfidf(data, out, dim=TFIDF_DIM, progress=tell),
    "oracle": lambda data, out, _: embed_truth(data, out, dim=DIM),
}


def has_data(folder: Path, tables: Iterable[str]) -> bool:
    """Whether data, features and the named tables of a preset are there."""
    return (
        (folder / DATA / DESCRIPTION).is_file()
        and (folder / FEATURES / MANIFEST).is_file()
        and all(has_tables(folder / name) for name in tables)
    )


def has_tables(folder: Path) -> bool:
    """Whether the tables of products and of queries are there."""
    return all(is_table(folder / kind) for kind in ("products", "queries"))


def has_rows(table1: Path, rows: Iterable[str]) -> bool:
    """Whether a finished table 1 has these rows."""
    if not table1.is_file():
        return False
    return set(rows) <= set(json.loads(table1.read_bytes()).get("rows", ()))


def make_data(
    config: MarketplaceConfig, folder: Path, features: FeatureConfig, tables: tuple[str, ...], tell: Progress
) -> None:
    """Marketplace, feature set and the tables that need no encoder, as far as they are missing."""
    data = folder / DATA
    if not (data / DESCRIPTION).is_file():
        generate(config, data, progress=tell)
    if not (folder / FEATURES / MANIFEST).is_file():
        tell("checking rows", 0, 1)
        check_or_raise(InputTables.open(data), memory_limit=MEMORY_LIMIT, threads=1)
        build(data, folder / FEATURES, features, threads=1, memory_limit=MEMORY_LIMIT, progress=tell)
    for done, name in enumerate(tables):
        tell(f"tables {name}", done, len(tables))
        if not has_tables(folder / name):
            TABLES[name](data, folder / name, tell)


def train_encoders(data: Path, folder: Path, config: EncodersConfig, tell: Progress) -> None:
    """Warm-ups, stage 1 and stage 2 to `folder`; the tables of stage 1 for table 1."""
    run_stage_1(data, folder / PRETRAIN, config, "cpu", tell)
    stage_1 = DashClipEncoder.load(folder / PRETRAIN / ENCODER)
    run_align(
        data,
        folder / ALIGN,
        config,
        start=stage_1,
        show=lambda report: tell("stage 2", report.step, report.total_steps),
        progress=tell,
    )


def are_trained(folder: Path) -> bool:
    """Whether both stages have come to their end."""
    return is_finished(folder / ALIGN)


def encode(
    data: Path,
    encoders: Path,
    out: Path,
    config: EncodersConfig,
    tell: Progress,
    *,
    earlier: tuple[Path, Path] | None = None,
) -> None:
    """The tables that the rankers read: all products and queries of `data`.

    Args:
        earlier: data and tables of another preset of the same world, whose vectors are copied.

    Raises:
        ValueError: the two presets do not have the same products and grades, so the encoders, which were
            trained on one of them, are not those of the other.
    """
    if earlier is not None and data_checksum(earlier[0]) != data_checksum(data):
        raise ValueError(
            f"{earlier[0]} and {data} have different products, grades or true facts, so encoders trained on "
            "the one are not those of the other; generate both with one version, in an empty folder"
        )
    encode_tables(
        data,
        out,
        DashClipEncoder.load(encoders / ALIGN / ENCODER),
        inputs=config.inputs,
        only_new_from=earlier and earlier[1],
        progress=tell,
    )


def measure_table1(
    data: Path,
    folder: Path,
    encoders: Path,
    vectors: Mapping[str, Path],
    out: Path,
    config: EncodersConfig,
    tell: Progress,
) -> None:
    """Table 1 of the held-out queries to the file `out`; of stage 1 their vectors are encoded first.

    Args:
        folder: of the preset, with the tables that need no encoder.
        vectors: folders with both tables, by row.
    """
    stage_1 = encoders / STAGE_1
    if not has_tables(stage_1):
        grades = read_grades(data)
        held_out_Q = grades.query_roles(config.holdout) != TRAIN
        encode_tables(
            data,
            stage_1,
            DashClipEncoder.load(encoders / PRETRAIN / ENCODER),
            inputs=config.inputs,
            queries=grades.queries.filter(held_out_Q),
            progress=tell,
        )
    rows = {LSA: folder / LSA, STAGE_1: stage_1, **vectors}
    found = measure_retrieval(
        data,
        {name: tables for name, tables in rows.items() if has_tables(tables)},
        holdout=config.holdout,
        progress=tell,
    )
    found.model_copy(update={"environment": environment()}).write(out)
