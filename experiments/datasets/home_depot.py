"""Home Depot's graded search results as input tables: products and human grades, nothing else.

Source: the Kaggle competition "Home Depot Product Search Relevance" (2016). Each pair of a search term and a
product has the mean of at least three human grades from 1 (irrelevant) to 3 (perfect match). The columns are
`product_uid`, `product_title`, `search_term` and `relevance`, in `relevance.csv[.gz]` (UTF-8) or as published
in `train.csv[.gz]` (Latin-1).

The data set has no images, no logs and no aisles. Aisles are needed all the same, since a product short of
negatives borrows queries from another aisle (paper section 3.2.2). So titles are clustered, and a cluster,
named by its most telling words, stands for an aisle. `source.json` says so; do not report results by it.

Shapes: N products, D embedding width, A aisles.
"""

import csv
import gzip
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from embeddings.catalog.titles import normalise_text
from embeddings.tables.lsa import lsa_vectors
from features.artifacts import atomic_folder, atomic_write_json, json_file_has, refuse_to_replace_input
from features.inputs.tables import InputError
from features.progress import Progress, silent

#: A mean grade below the first is irrelevant (0), below the second moderate (1), else high (2).
GRADE_LIMITS = (1.75, 2.5)
#: Names of the file and their encodings, in the order in which they are looked for.
FILES = (("relevance.csv", "utf-8"), ("train.csv", "latin-1"))
COLUMNS = ("product_uid", "product_title", "search_term", "relevance")

#: About as many as a store of this kind has departments with aisles of their own.
AISLES = 48
AISLE_DIM = 64
AISLE_SEED = 0
AISLE_WORDS = 3


@dataclass(frozen=True)
class HomeDepotSummary:
    """What was imported; `irrelevant` + `moderate` + `high` = `pairs`."""

    queries: int
    products: int
    pairs: int
    irrelevant: int
    moderate: int
    high: int
    aisles: int
    #: Products that came with more than one title; the first is kept.
    several_titles: int
    #: Repetitions of a query and product; the first grade is kept.
    repeated_pairs: int


@dataclass(frozen=True)
class _Pair:
    product: int
    title: str
    query: str
    mean_grade: float


def import_home_depot(source: Path, out: Path, *, progress: Progress = silent) -> HomeDepotSummary:
    """Write products and relevance of Home Depot to the folder `out`.

    `source` is the file or the folder that holds it. Grades follow `grade_of`; the mean that they come from
    stays in a further column `mean_grade`. Queries and titles stay exactly as published.

    Raises:
        InputError: no known file, or a line that cannot be read; names file and line.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    refuse_to_replace_input(out, source)
    progress("reading the grades", 0, 1)
    titles: dict[int, str] = {}
    more_titles: set[int] = set()
    mean_grades: dict[tuple[str, int], float] = {}
    repeated = 0
    for pair in _pairs(*_find(source)):
        if titles.setdefault(pair.product, pair.title) != pair.title:
            more_titles.add(pair.product)
        key = (pair.query, pair.product)
        repeated += key in mean_grades
        mean_grades.setdefault(key, pair.mean_grade)
    if not mean_grades:
        raise InputError(f"{source} holds no graded pair; is the download complete?")
    titles = dict(sorted(titles.items()))
    aisles = derive_aisles(list(titles.values()), progress=progress)
    grades = [grade_of(mean) for mean in mean_grades.values()]
    summary = HomeDepotSummary(
        queries=len({query for query, _ in mean_grades}),
        products=len(titles),
        pairs=len(grades),
        irrelevant=grades.count(0),
        moderate=grades.count(1),
        high=grades.count(2),
        aisles=len(set(aisles)),
        several_titles=len(more_titles),
        repeated_pairs=repeated,
    )
    progress("writing the tables", 0, 1)
    with atomic_folder(
        out, ours=lambda found: json_file_has(found / "source.json", "grade_limits")
    ) as folder:
        pq.write_table(_products(titles, aisles), folder / "products.parquet")
        pq.write_table(_relevance(mean_grades, grades), folder / "relevance.parquet")
        description = {
            "source": "Home Depot Product Search Relevance",
            "simulated": False,
            "grade_limits": GRADE_LIMITS,
            "aisle": f"not in the data set: k-means clusters of the titles' LSA vectors ({AISLE_DIM} "
            f"dimensions, seed {AISLE_SEED}), named by their most telling words",
            "absent": ["images", "impressions", "purchases"],
        }
        atomic_write_json(folder / "source.json", {**description, **asdict(summary)})
    return summary


def grade_of(mean_grade: float) -> int:
    """0 irrelevant, 1 moderate, 2 high, from a mean of grades from 1 to 3; 1.67, 1.75, 2.5 give 0, 1, 2."""
    return sum(mean_grade >= limit for limit in GRADE_LIMITS)


def derive_aisles(titles: Sequence[str], *, progress: Progress = silent) -> list[str]:
    """A stand-in for the aisle of each title: the telling words of its cluster, as "bulb, light, lamp".

    The same titles give the same aisles; titles that normalise alike share one.

    Raises:
        ValueError: no title holds a letter or a digit.
    """
    vectors_ND = lsa_vectors(titles, [], dim=AISLE_DIM, seed=AISLE_SEED, progress=progress).products_ND
    progress("aisles", 0, 1)
    distinct = len(np.unique(vectors_ND, axis=0))
    clusters = KMeans(min(AISLES, distinct), n_init=1, random_state=AISLE_SEED).fit(vectors_ND)
    names_A = _cluster_names(titles, clusters.labels_)
    return [names_A[label] for label in clusters.labels_.tolist()]


def _cluster_names(titles: Sequence[str], label_N: npt.NDArray[np.int32]) -> list[str]:
    """Words frequent in the cluster and rare elsewhere: by share in it x log(share in it / share overall)."""
    words_N = [
        {word for word in normalise_text(title).split() if word.isalpha() and len(word) > 2}
        for title in titles
    ]
    overall = Counter(word for words in words_N for word in words)
    names: list[str] = []
    for label in range(int(label_N.max()) + 1):
        members = np.flatnonzero(label_N == label).tolist()
        inside = Counter(word for member in members for word in words_N[member])
        telling = {
            word: count / len(members) * math.log(count / len(members) * len(titles) / overall[word])
            for word, count in inside.items()
            if word not in ENGLISH_STOP_WORDS
        }
        best = sorted(telling, key=lambda word: (-telling[word], word))[:AISLE_WORDS]
        name = ", ".join(best) or "other"
        names.append(f"{name} ({label})" if name in names else name)
    return names


def _find(source: Path) -> tuple[Path, str]:
    for name, encoding in FILES:
        for ending in ("", ".gz"):
            path = source if source.is_file() else source / f"{name}{ending}"
            if path.is_file() and path.name == f"{name}{ending}":
                return path, encoding
    raise InputError(
        f"{source} is or holds neither relevance.csv[.gz] nor train.csv[.gz]; give the folder into which "
        "Home Depot's search relevance data were unpacked"
    )


def _pairs(path: Path, encoding: str) -> Iterator[_Pair]:
    try:
        with (
            gzip.open(path, "rt", encoding=encoding, newline="")
            if path.suffix == ".gz"
            else path.open(encoding=encoding, newline="") as file
        ):
            lines = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path} line 1: the header must name {', '.join(COLUMNS)}, but {', '.join(missing)} "
                    f"{'is' if len(missing) == 1 else 'are'} not in it"
                )
            for fields in lines:
                yield _pair(fields, f"{path} line {lines.line_num}")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); download it again") from error


def _pair(fields: dict[str, Any], place: str) -> _Pair:
    product, mean_grade = fields["product_uid"] or "", fields["relevance"] or ""
    title, query = fields["product_title"] or "", fields["search_term"] or ""
    if not product.isdecimal():
        raise InputError(f"{place}: product_uid must be a whole number, not {product!r}")
    if not query.strip():
        raise InputError(f"{place}: the search term is empty; is the download complete?")
    try:
        mean = float(mean_grade)
    except ValueError:
        mean = math.nan
    if not 1 <= mean <= 3:
        raise InputError(f"{place}: relevance must be a mean grade from 1 to 3, not {mean_grade!r}")
    return _Pair(int(product), title, query, mean)


def _products(titles: dict[int, str], aisles: Sequence[str]) -> pa.Table:
    columns: dict[str, Any] = {
        "product_id": pa.array(list(titles), pa.int64()),
        "title": pa.array(list(titles.values()), pa.string()),
        "aisle": pa.array(aisles, pa.string()),
    }
    return pa.table(columns)


def _relevance(mean_grades: dict[tuple[str, int], float], grades: Sequence[int]) -> pa.Table:
    columns: dict[str, Any] = {
        "query": pa.array([query for query, _ in mean_grades], pa.string()),
        "product_id": pa.array([product for _, product in mean_grades], pa.int64()),
        "grade": pa.array(grades, pa.int8()),
        "source": pa.array(["human"] * len(grades), pa.string()),
        "mean_grade": pa.array(list(mean_grades.values()), pa.float32()),
    }
    return pa.table(columns)
