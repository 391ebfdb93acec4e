"""Simulated pairs whose grade follows from their words: a catalogue of colours and things."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.pairs import Catalogue, GradedPairs, read_graded_pairs

COLOURS = ("red", "blue", "green", "white", "black", "amber", "violet", "silver")
THINGS = ("lamp", "door", "shovel", "carpet", "faucet", "ladder", "hammer", "mirror", "basket", "heater")
MAKERS = ("Acme", "Borg", "Cory", "Dune")
#: Few queries, so many are held out.
HOLDOUT = HoldoutConfig(test_query_share=0.2, validation_query_share=0.2)


def write_small_world(folder: Path, *, seed: int = 0) -> Path:
    """Query "red lamp": high for a red lamp, moderate for another lamp, irrelevant for other red things."""
    rng = np.random.default_rng(seed)
    titles, kinds = [], []
    for colour in COLOURS:
        for thing in THINGS:
            for maker in MAKERS[: 1 + int(rng.integers(len(MAKERS)))]:
                extra = f"for {thing}s of {int(rng.integers(1, 30))} in"
                titles.append(f"{maker} {colour.title()} {thing.title()} {extra}")
                kinds.append((colour, thing))
    rows = []
    for colour in COLOURS:
        for thing in THINGS:
            for product in rng.choice(len(titles), 12, replace=False).tolist():
                rows.append((f"{colour} {thing}", product, _grade(kinds[product], (colour, thing))))
            for product, kind in enumerate(kinds):
                if kind == (colour, thing) or (kind[1] == thing and rng.random() < 0.2):
                    rows.append((f"{colour} {thing}", product, _grade(kind, (colour, thing))))
    rows = sorted(set(rows))
    folder.mkdir(exist_ok=True)
    columns = {"product_id": pa.array(range(len(titles)), pa.int64()), "title": pa.array(titles)}
    pq.write_table(pa.table(columns), folder / "products.parquet")
    queries, products, grades = zip(*rows, strict=True)
    relevance = {
        "query": pa.array(queries),
        "product_id": pa.array(products, pa.int64()),
        "grade": pa.array(grades, pa.int8()),
        "source": pa.array(["human"] * len(rows)),
    }
    pq.write_table(pa.table(relevance), folder / "relevance.parquet")
    return folder


def read_small_world(folder: Path) -> tuple[Catalogue, GradedPairs]:
    """The catalogue and people's pairs of a small world in `folder`."""
    catalogue = Catalogue.read(folder)
    return catalogue, read_graded_pairs(folder, HOLDOUT, catalogue=catalogue)


def _grade(kind: tuple[str, str], asked: tuple[str, str]) -> int:
    return 2 if kind == asked else 1 if kind[1] == asked[1] else 0
