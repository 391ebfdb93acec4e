"""People beside a grader: which pairs they should see next, and their answers as grades.

Shapes: N pairs.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.grading.pairs import Catalogue, GradingError
from embeddings.grading.run import RELEVANCE, parts_of
from embeddings.relevance.grades import GRADES, PROBABILITIES
from features.artifacts import (
    atomic_folder,
    atomic_write_json,
    json_file_has,
    link_or_copy,
    refuse_foreign_folder,
    refuse_to_replace_input,
    replaced_file,
)
from features.inputs.tables import InputTable, find_table

#: Columns of the file that people fill in; a spreadsheet may add others.
QUEUE = ("query", "product_id", "text", "grade")
IMPORTED = "imported_grades.json"
#: Most pairs of one query in a queue, so that people see many queries.
_PER_QUERY = 3


@dataclass(frozen=True)
class Imported:
    """Rows of relevance: those of before, new ones of people and of models; and what was left out.

    `corrected` pairs of those of before have another grade of people now.
    """

    before: int
    people: int
    models: int
    left_blank: int
    known: int
    corrected: int


def write_queue(run: Path, pairs: Path, out: Path, *, count: int) -> int:
    """Write the `count` pairs where a person's grade is worth most; how many there are.

    That is uncertainty (1 - the difference of the two largest probabilities) times the logarithm of 1 + the
    searches of the query, at most three pairs of a query.

    Raises:
        GradingError: nothing is graded yet, or the pairs do not fit.
    """
    parts = parts_of(run)
    if not parts:
        raise GradingError(f"{run} holds no grades yet; `dashclip grade run` makes them")
    graded = pa.concat_tables([pq.read_table(part) for part in parts])
    asked = pq.read_table(pairs, columns=["query", "product_id", "text", "volume"])
    joined = graded.join(asked, keys=["query", "product_id"], join_type="inner")
    if not joined.num_rows:
        raise GradingError(f"no pair of {pairs} is graded in {run}; give the pairs that were graded there")
    joined = joined.sort_by([("query", "ascending"), ("product_id", "ascending")])
    p_N3 = np.sort(np.column_stack([joined[name].to_numpy() for name in PROBABILITIES]), axis=1)
    worth_N = (1 - (p_N3[:, 2] - p_N3[:, 1])) * np.log1p(joined["volume"].to_numpy())
    queries = joined["query"].to_pylist()
    taken: dict[str, int] = {}
    chosen: list[int] = []
    for row in np.argsort(-worth_N, kind="stable").tolist():
        if len(chosen) < count and taken.get(queries[row], 0) < _PER_QUERY:
            taken[queries[row]] = taken.get(queries[row], 0) + 1
            chosen.append(row)
    rows = joined.take(pa.array(chosen, pa.int64())).select(["query", "product_id", "text"]).to_pylist()
    with replaced_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, QUEUE)
        writer.writeheader()
        writer.writerows([{**row, "grade": ""} for row in rows])
    return len(rows)


def import_grades(data: Path, out: Path, *, answers: list[Path], runs: list[Path]) -> Imported:
    """Write the data folder `out`: the tables of `data`, with more grades in relevance.

    A person's answer to a pair that has a person's grade already is left out and counted, unless the file
    says which grade was `given`, as that of an audit does: then the answer takes the place of that grade.

    Raises:
        GradingError: an answer cannot be used (the message has file and line), or a run holds no grades.
        FileExistsError: `out` holds something else.
    """
    refuse_to_replace_input(out, data)
    refuse_foreign_folder(out, ours=_is_import)
    catalogue = Catalogue.read(data)
    old = find_table(data, "relevance")
    known = _graded_by_people(old)
    people: list[tuple[str, object, int]] = []
    corrections: dict[tuple[str, object], int] = {}
    blank = repeated = 0
    for path in answers:
        found, left, audited = _read_answers(path, catalogue)
        blank += left
        for query, product, grade in found:
            if (query, product) in known:
                if audited:
                    corrections[query, product] = grade
                else:
                    repeated += 1
                continue
            known.add((query, product))
            people.append((query, product, grade))
    models = 0
    with atomic_folder(out, ours=_is_import) as temporary:
        link_other_tables(data, temporary)
        corrected: set[tuple[str, object]] = set()
        for number, path in enumerate(old.files if old else ()):
            kept = temporary / RELEVANCE / f"before-{number:06d}.parquet"
            if not _write_corrected(path, kept, corrections, corrected):
                link_or_copy(path, kept)
        if people:
            pq.write_table(_table(people, catalogue), temporary / RELEVANCE / "people.parquet")
        for place, run in enumerate(runs):
            parts = parts_of(run)
            if not parts:
                raise GradingError(f"{run} holds no grades; `dashclip grade run` makes them")
            for part in parts:
                models += pq.read_metadata(part).num_rows
                link_or_copy(part, temporary / RELEVANCE / f"model-{place:03d}-{part.name}")
        atomic_write_json(temporary / IMPORTED, {"imported_grades": len(people), "models": models})
    return Imported(old.rows if old else 0, len(people), models, blank, repeated, len(corrected))


def link_other_tables(data: Path, out: Path) -> None:
    """Link all files of a data folder but those of relevance, and make an empty folder for these."""
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data)
        if path.is_file() and name.parts[0] not in (RELEVANCE, f"{RELEVANCE}.parquet"):
            link_or_copy(path, out / name)
    (out / RELEVANCE).mkdir()


def _write_corrected(
    path: Path,
    out: Path,
    corrections: dict[tuple[str, object], int],
    corrected: set[tuple[str, object]],
) -> bool:
    """Write a file of relevance with the corrections; False, and no file, where it has none of these pairs.

    The first row of people keeps its other columns; their further rows of the pair, in any file, are dropped.
    """
    if not corrections:
        return False
    table = pq.read_table(path)
    wanted = pa.array(sorted({query for query, _ in corrections}), pa.string())
    maybe = pc.and_(
        pc.equal(table.column("source").cast(pa.string()), "human"),
        pc.is_in(table.column("query").cast(pa.string()), value_set=wanted),
    )
    rows = np.flatnonzero(pc.fill_null(maybe, False).combine_chunks().to_numpy(zero_copy_only=False))
    some = table.select(["query", "product_id"]).take(pa.array(rows))
    grades = table.column("grade").to_pylist()
    kept_N = np.ones(table.num_rows, bool)
    met = False
    pairs = zip(some["query"].to_pylist(), some["product_id"].to_pylist(), strict=True)
    for row, pair in zip(rows.tolist(), pairs, strict=True):
        if pair in corrections:
            met = True
            kept_N[row] = pair not in corrected
            grades[row] = corrections[pair]
            corrected.add(pair)
    if met:
        place = table.schema.get_field_index("grade")
        column = pa.array(grades, table.schema.field(place).type)
        pq.write_table(table.set_column(place, "grade", column).filter(pa.array(kept_N)), out)
    return met


def _graded_by_people(table: InputTable | None) -> set[tuple[str, object]]:
    known: set[tuple[str, object]] = set()
    if table is not None:
        for batch in table.to_batches(columns=["query", "product_id", "source"]):
            rows = batch.filter(pc.equal(batch.column("source").cast(pa.string()), "human"))
            known.update(
                zip(rows.column("query").to_pylist(), rows.column("product_id").to_pylist(), strict=True)
            )
    return known


def _read_answers(path: Path, catalogue: Catalogue) -> tuple[list[tuple[str, object, int]], int, bool]:
    """Answers of a file, how many rows have no grade, and whether it says which grades were given before."""
    known = set(catalogue.product_ids.to_pylist())
    whole = pa.types.is_integer(catalogue.product_ids.type)
    found: list[tuple[str, object, int]] = []
    blank = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"query", "product_id", "grade"} - {*(reader.fieldnames or ())}
        if missing:
            raise GradingError(f"{path} lacks the column {', '.join(sorted(missing))}; keep the header line")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            answer = (row["grade"] or "").strip().lower()
            if not answer:
                blank += 1
                continue
            if answer not in ("0", "1", "2", *GRADES):
                raise GradingError(
                    f"{place}: grade must be 0 (irrelevant), 1 (moderate) or 2 (high), got {answer!r}"
                )
            grade = GRADES.index(answer) if answer in GRADES else int(answer)
            text = (row["product_id"] or "").strip()
            product: object = int(text) if whole and text.removeprefix("-").isdecimal() else text
            if product not in known:
                raise GradingError(f"{place}: product {text!r} is not in the catalogue; correct the id")
            if not (row["query"] or "").strip():
                raise GradingError(f"{place}: the query is blank; fill it in or delete the row")
            found.append((row["query"], product, grade))
    return found, blank, "given" in (reader.fieldnames or ())


def _table(people: list[tuple[str, object, int]], catalogue: Catalogue) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "query": pa.array([query for query, *_ in people], pa.string()),
        "product_id": pa.array([product for _, product, _ in people], catalogue.product_ids.type),
        "grade": pa.array([grade for *_, grade in people], pa.int8()),
        "source": pa.array(["human"] * len(people), pa.string()),
    }
    return pa.table(columns)


def _is_import(folder: Path) -> bool:
    return json_file_has(folder / IMPORTED, "imported_grades")
