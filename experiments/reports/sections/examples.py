"""What some queries find by the vectors of a folder, on its evidence page: drawn, not chosen.

Shapes: Q queries, P products, K places, D embedding width.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.catalog.holdout import TEST, HoldoutConfig
from embeddings.catalog.images import OutsideImage
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable, EmbeddingTableError, is_table
from embeddings.evaluation.linear_probe import unit_vectors
from embeddings.evaluation.search import search
from embeddings.relevance.grades import Grades, RelevanceError, read_grades
from experiments.reports.page import Gallery, Origin, Section, Tile
from experiments.reports.records import EvidenceError
from experiments.reports.sections.training import training_records
from experiments.reports.tiles import price_text, product_tile
from experiments.scoring.texts import product_prices
from features.inputs.tables import InputError, table_files

TITLE = "Examples: what queries find"
QUESTION = "What does a query find?"
QUERIES = 6
PLACES = 8
GRADES = {0: "irrelevant", 1: "moderate", 2: "highly relevant"}


def examples_section(folder: Path, *, data: Path | None, table: Path | None) -> Section | None:
    """The best products of some queries, with their pictures; of some products, where there are no queries.

    Args:
        data: where the products lie; without it there is nothing to show.
        table: folder with `products/` and perhaps `queries/`; the newest in `folder` if None.

    Raises:
        EvidenceError: there are no vectors, or they are of other products.
    """
    if data is None:
        return None
    source = table or newest_tables(folder)
    if source is None:
        raise EvidenceError(f"{folder} holds no vectors of products")
    try:
        products = EmbeddingTable.load(source / "products")
        catalog = ProductCatalog.open(data)
        prices = product_prices(data, len(catalog))
        grades, drawn_from, wanted = _wanted(folder, data, source)
    except (EmbeddingTableError, InputError, RelevanceError) as error:
        raise EvidenceError(str(error)) from error
    vector_PD = unit_vectors(products, catalog.ids)
    if not vector_PD.any():
        raise EvidenceError(f"{source} has no vector of any product of {data}")
    if wanted is None:
        return _similar(source, products, catalog, prices, vector_PD)
    names, vector_QD = wanted
    best_QK = search(vector_PD, vector_QD, PLACES)
    galleries = []
    counts = dict.fromkeys((*GRADES, None), 0)
    for name, vector_D, best_K in zip(names, vector_QD, best_QK, strict=True):
        tiles = []
        for row in best_K.tolist():
            grade = grades.get((name, catalog.ids[row].as_py()))
            counts[grade] += 1
            told = "not graded" if grade is None else GRADES[grade]
            lines = (f"cosine {float(vector_PD[row] @ vector_D):.3f}", *([told] if grades else []))
            tiles.append(_tile(catalog, prices, row, lines))
        galleries.append(Gallery(name, "", tuple(tiles)))
    return Section(
        anchor="examples",
        title=TITLE,
        question=QUESTION,
        answer=_answer(counts, len(names)) if grades else f"{len(names)} queries, drawn at random.",
        origin=_origin(source, products),
        sentences=(
            f"Drawn at random (seed 0), not chosen, from {drawn_from}. The {PLACES} products with the "
            f"highest cosine, best first, of all {len(catalog):,}."
            + (" Grades are those of the relevance table; most pairs were never graded." if grades else ""),
        ),
        galleries=tuple(galleries),
    )


def newest_tables(folder: Path) -> Path | None:
    """Where the newest embedding table of products is, here or inside; one with queries goes before."""
    found = [
        path.parent.parent
        for path in (*folder.glob("products/manifest.json"), *folder.glob("**/products/manifest.json"))
        if is_table(path.parent)
    ]
    return max(
        found,
        key=lambda source: (
            is_table(source / "queries"),
            (source / "products/manifest.json").stat().st_mtime,
        ),
        default=None,
    )


_Wanted = tuple[list[str], np.ndarray]


def _wanted(
    folder: Path, data: Path, source: Path
) -> tuple[dict[tuple[str, int | str], int], str, _Wanted | None]:
    """Grades, where the queries were drawn from, and the queries with their vectors, None without any."""
    if not is_table(source / "queries"):
        return {}, "", None
    table = EmbeddingTable.load(source / "queries")
    known = table.ids.filter(pa.array(table.vectors_ND[1:].any(axis=1))) if len(table) else table.ids
    graded = read_grades(data) if table_files(data, "relevance") else None
    drawn_from = "all queries that have a vector"
    if graded is not None:
        recorded = HoldoutConfig.of_record(table.manifest.holdout) or _holdout(folder)
        held_out = graded.queries.filter(pa.array(graded.query_roles(recorded or HoldoutConfig()) == TEST))
        among = known.filter(pc.is_in(known, held_out.cast(known.type)))
        if len(among):
            known = among
            drawn_from = (
                "the held-out queries, whose grades stage 2 never saw"
                if recorded is not None
                else "the queries that are held out by default (no record here says whether they were)"
            )
    draw = np.random.default_rng(0)
    rows = np.sort(draw.choice(len(known), size=min(QUERIES, len(known)), replace=False))
    queries = known.take(pa.array(rows))
    names = queries.to_pylist()
    grades = _grades_of(graded, names) if graded is not None else {}
    return grades, drawn_from, (names, unit_vectors(table, queries))


def _grades_of(graded: Grades, queries: list[str]) -> dict[tuple[str, int | str], int]:
    """Grade by query and product id."""
    wanted_G = np.isin(graded.query_G, pc.index_in(pa.array(queries), graded.queries).fill_null(-1))
    return {
        (graded.queries[query].as_py(), graded.product_ids[product].as_py()): grade
        for query, product, grade in zip(
            graded.query_G[wanted_G].tolist(),
            graded.product_G[wanted_G].tolist(),
            graded.grade_G[wanted_G].tolist(),
            strict=True,
        )
    }


def _holdout(folder: Path) -> HoldoutConfig | None:
    """What the training runs of the folder held out; None if there is no record."""
    for record in training_records(folder).values():
        recorded = record.settings.get("inputs", {}).get("holdout")
        if recorded:
            return HoldoutConfig.of_record(recorded)
    return None


def _similar(
    source: Path,
    products: EmbeddingTable,
    catalog: ProductCatalog,
    prices: list[float | None],
    vector_PD: np.ndarray,
) -> Section:
    known = np.flatnonzero(vector_PD.any(axis=1))
    rows = np.sort(np.random.default_rng(0).choice(known, size=min(QUERIES, len(known)), replace=False))
    best_QK = search(vector_PD, vector_PD[rows], PLACES)
    galleries = []
    for row, best_K in zip(rows.tolist(), best_QK.tolist(), strict=True):
        near = [_tile(catalog, prices, row, ["this product"])]
        near += [
            _tile(catalog, prices, other, [f"cosine {float(vector_PD[other] @ vector_PD[row]):.3f}"])
            for other in best_K
            if other != row
        ]
        galleries.append(Gallery(catalog.titles[row], "", tuple(near[:PLACES])))
    return Section(
        anchor="examples",
        title="Examples: similar products",
        question="Which products are near each other?",
        answer=f"{len(rows)} products, drawn at random, and those nearest to each.",
        origin=_origin(source, products),
        sentences=(
            f"There are no vectors of queries. Drawn with seed 0 from the {len(known):,} products that have "
            "a vector; beside each those with the highest cosine.",
        ),
        galleries=tuple(galleries),
    )


def _tile(
    catalog: ProductCatalog, prices: list[float | None], row: int, lines: list[str] | tuple[str, ...]
) -> Tile:
    image = catalog.image_paths[row]
    return product_tile(
        None if isinstance(image, OutsideImage) else image,
        (catalog.titles[row] or str(catalog.ids[row]), price_text(prices[row]), *lines),
    )


def _answer(counts: Mapping[int | None, int], queries: int) -> str:
    shown = sum(counts.values())
    graded = shown - counts[None]
    if not graded:
        return f"Nobody has graded any of the {shown} products shown for {queries} queries."
    return (
        f"Of {shown} products shown for {queries} queries, {counts[2]} were graded highly relevant, "
        f"{counts[1]} moderate, {counts[0]} irrelevant and {counts[None]} never."
    )


def _origin(source: Path, products: EmbeddingTable) -> Origin:
    return Origin(f"{products.manifest.encoder_id} in {source}", (), products.manifest.created)
