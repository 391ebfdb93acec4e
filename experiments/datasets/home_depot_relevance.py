"""How well vectors tell Home Depot's relevant products from irrelevant ones, on queries never trained on.

Every row gives a graded pair one score: the cosine of its query and product, or what query and title share:
the floor is how many of the query's words the title has, stemmed BM25 and the cosine of character n-grams are
the strongest that no training costs. Queries are split by `query_roles`, the same roles as in training; all
figures are of the test queries' pairs. Intervals draw whole queries again, as pairs of one query are not
independent, and every row sees the same draws, so that differences are paired.

Shapes: N pairs, D embedding width, M rows compared, R resamples, Q test queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.lexical import Scorer, char_tfidf_scores, token_overlap, tuned_bm25
from embeddings.evaluation.linear_probe import (
    GroupedHits,
    best_cutoffs,
    group_resamples,
    linear_probe,
    unit_vectors,
)
from embeddings.relevance.grades import GRADES, read_grades
from experiments.statistics.cells import Intervals, interval_of, markdown_table, with_limits
from experiments.statistics.intervals import Interval, UserWeightedAuc
from features.artifacts import ResultFile
from features.inputs.tables import find_table
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float32]

OVERLAP, BM25, CHARACTERS = "token_overlap", "bm25_stemmed", "char_tfidf"
_IRRELEVANT, _HIGH = 0, 2
_TRAIN, _VALIDATION, _TEST = 0, 1, 2
ROLES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Vectors:
    """The two tables of one encoder."""

    products: EmbeddingTable
    queries: EmbeddingTable


@dataclass(frozen=True, eq=False)
class GradedPairs:
    """The graded pairs of a data folder; `group_N` numbers their queries, `role_N` is of `query_roles`."""

    queries: pa.Array
    products: pa.Array
    #: Of the whole catalogue, and which of them is each pair's.
    titles_P: Sequence[str]
    title_N: npt.NDArray[np.int64]
    grade_N: npt.NDArray[np.int64]
    group_N: npt.NDArray[np.int64]
    role_N: npt.NDArray[np.int8]


class HomeDepotResults(ResultFile):
    """`results.json`: figures by row, paired differences "later - earlier" and what they were measured on."""

    simulated: bool = False
    #: Probability that a pair graded high scores above an irrelevant one, ties counting half.
    auc_high_vs_irrelevant: Intervals
    #: Of the three grades.
    macro_f1: Intervals
    macro_f1_of_the_score: Intervals
    #: By two cutoffs of the score instead of a probe, those of the best macro F1 on validation queries.
    macro_f1_of_cutoffs: Intervals = Field(default_factory=dict)
    recall: dict[str, dict[str, float]]
    auc_differences: Intervals
    macro_f1_differences: Intervals
    #: Encoder ids.
    encoders: dict[str, str]
    #: Test pairs of which the query or the product has no vector or zeros: their cosine counts as 0.
    pairs_without_vector: dict[str, int]
    queries: dict[str, int]
    test_pairs: dict[str, int]
    holdout: HoldoutConfig
    #: Share of test pairs whose product has a grade for some train query.
    products_seen_in_training: float
    #: The published floor is 0.694.
    token_overlap_auc_of_all_queries: float
    provenance: dict[str, str] | None = None


def evaluate_home_depot(
    data: Path,
    vectors: Mapping[str, Vectors],
    *,
    holdout: HoldoutConfig | None = None,
    fused: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> HomeDepotResults:
    """Compare lexical scores and each entry of `vectors` on the grades of `data`.

    Give the `holdout` that the encoders were trained with. Probes are trained on two thirds of the validation
    queries and their strength chosen on the others, as encoders have seen the train queries' grades. The
    probe of a row of vectors reads the cosine, |p - q| and p * q of unit vectors p and q; that of a lexical
    row has the score alone. A name in `fused` gets two more rows, "NAME + token_overlap" and
    "NAME + char_tfidf", whose score is the sum of both scores, each in standard deviations of its scores of
    validation pairs, and whose probe reads all of their features. BM25 is tuned on validation queries.

    Raises:
        ValueError: a table is missing, or a role of queries has no high or no irrelevant pair.
    """
    holdout = holdout or HoldoutConfig()
    pairs = read_graded_pairs(data, holdout)
    test_N = pairs.role_N == _TEST
    for role, name in enumerate(ROLES):
        grades = pairs.grade_N[pairs.role_N == role]
        if role != _TRAIN and not (_IRRELEVANT in grades and _HIGH in grades):
            raise ValueError(
                f"the {name} queries of {data} must have pairs graded high and irrelevant, but their "
                f"{len(grades):,} pairs lack one; give more grades or other shares of held-out queries"
            )
    progress("scoring words and n-grams", 0, 1)
    lexical = _lexical_features(pairs)
    test_group_N = np.unique(pairs.group_N[test_N], return_inverse=True)[1].astype(np.int64)
    weights_RQ = group_resamples(int(test_group_N.max()) + 1, resamples, np.random.default_rng(seed))
    measured: dict[str, _Measured] = {}
    sums = [(name, words) for words in (OVERLAP, CHARACTERS) for name in vectors if name in fused]
    rows: list[tuple[str, str | None]] = [(name, None) for name in (*lexical, *vectors)]
    for done, (name, words) in enumerate([*rows, *sums]):
        progress("probing", done, len(rows) + len(sums))
        features = lexical[name] if name in lexical else _vector_features(pairs, vectors[name])
        if words is not None:
            features = _fused(features, lexical[words], pairs.role_N == _VALIDATION)
        measured[name if words is None else f"{name} + {words}"] = _measure(
            pairs, features, test_group_N=test_group_N, weights_RQ=weights_RQ
        )
    seen = pc.is_in(pairs.products, value_set=pairs.products.filter(pa.array(pairs.role_N == _TRAIN)))
    return HomeDepotResults(
        auc_high_vs_irrelevant={name: interval_of(row.auc_R) for name, row in measured.items()},
        macro_f1={name: interval_of(row.macro_f1_R) for name, row in measured.items()},
        macro_f1_of_the_score={name: row.score_macro_f1 for name, row in measured.items()},
        macro_f1_of_cutoffs={name: row.cutoffs_macro_f1 for name, row in measured.items()},
        recall={name: row.recall for name, row in measured.items()},
        auc_differences=_differences({name: row.auc_R for name, row in measured.items()}),
        macro_f1_differences=_differences({name: row.macro_f1_R for name, row in measured.items()}),
        encoders={name: row.encoder_id for name, row in measured.items()},
        pairs_without_vector={name: row.pairs_without_vector for name, row in measured.items()},
        queries={
            name: len(np.unique(pairs.group_N[pairs.role_N == role])) for role, name in enumerate(ROLES)
        },
        test_pairs={
            name: int(np.count_nonzero(pairs.grade_N[test_N] == grade)) for grade, name in enumerate(GRADES)
        },
        holdout=holdout,
        products_seen_in_training=float(seen.to_numpy(zero_copy_only=False)[test_N].mean()),
        token_overlap_auc_of_all_queries=_auc(
            pairs.grade_N, lexical[OVERLAP].score_N, np.zeros_like(pairs.group_N)
        )(np.ones(1)),
    )


def read_graded_pairs(data: Path, holdout: HoldoutConfig) -> GradedPairs:
    """The pairs of `data`'s relevance with the titles of their products, in the order of the table.

    Raises:
        ValueError: a table is missing, or a pair names a product that the catalogue lacks.
    """
    products, relevance = find_table(data, "products"), find_table(data, "relevance")
    if products is None or relevance is None:
        raise ValueError(f"{data} must hold products and relevance; `dashclip import home-depot` writes both")
    catalogue = products.to_table(columns=["product_id", "title"]).combine_chunks()
    grades = relevance.to_table(columns=["query", "product_id", "grade"]).combine_chunks()
    known = catalogue.column("product_id").combine_chunks()
    place_N = pc.index_in(grades.column("product_id"), value_set=known)
    if place_N.null_count:
        unknown = grades.column("product_id").filter(pc.is_null(place_N))[0].as_py()
        raise ValueError(
            f"relevance of {data} grades product {unknown!r}, which products lacks; import it again"
        )
    encoded = grades.column("query").combine_chunks().dictionary_encode()
    group_N = encoded.indices.to_numpy().astype(np.int64)
    return GradedPairs(
        queries=grades.column("query").combine_chunks(),
        products=grades.column("product_id").combine_chunks(),
        titles_P=pc.fill_null(catalogue.column("title"), "").to_pylist(),
        title_N=place_N.to_numpy(zero_copy_only=False).astype(np.int64),
        grade_N=grades.column("grade").to_numpy().astype(np.int64),
        group_N=group_N,
        role_N=_roles(data, encoded.dictionary, holdout)[group_N],
    )


def _roles(data: Path, queries: pa.Array, holdout: HoldoutConfig) -> npt.NDArray[np.int8]:
    """Those of stage 2, in the order of `queries`."""
    graded = read_grades(data)
    return graded.query_roles(holdout)[pc.index_in(queries, value_set=graded.queries).to_numpy()]


def to_markdown(results: HomeDepotResults) -> str:
    """A heading, the table, the differences that can be told from zero, and what was measured."""
    lines = [
        "# Home Depot: relevance on unseen queries",
        "",
        f"**Real data.** {sum(results.test_pairs.values()):,} pairs of {results.queries['test']:,} "
        "test queries: "
        + ", ".join(f"{count:,} {grade}" for grade, count in results.test_pairs.items())
        + ".",
        "",
    ]
    heading = ["Row", "AUC high against irrelevant", "Macro F1, 3 grades", "Macro F1 of the score alone"]
    figures = [results.auc_high_vs_irrelevant, results.macro_f1, results.macro_f1_of_the_score]
    if results.macro_f1_of_cutoffs:
        heading.append("Macro F1 of two cutoffs")
        figures.append(results.macro_f1_of_cutoffs)
    lines += markdown_table(
        [*heading, "Recall irrelevant", "moderate", "high"],
        (
            [
                name,
                *(with_limits(one[name]) for one in figures),
                *(f"{recall[grade]:.3f}" for grade in GRADES),
            ]
            for name, recall in results.recall.items()
        ),
    )
    differences = (
        (name, with_limits(auc), with_limits(results.macro_f1_differences[name]))
        for name, auc in results.auc_differences.items()
    )
    lines += ["", *markdown_table(("Difference", "AUC", "Macro F1"), differences)]
    lines += [
        "",
        "In brackets 95 % intervals from resamples of whole queries, paired in differences. F1 and recall "
        f"are those of probes trained on the pairs of {results.queries['validation']:,} validation "
        "queries, which stopped stage 2 but taught no encoder; all grades weigh the same there. The two "
        "cutoffs of the score are those of the best macro F1 on the same queries. "
        f"{results.products_seen_in_training:.1%} of the test pairs have a product that is graded for a "
        "train query, too. Token overlap (share of the query's words that the title contains) reaches "
        f"{results.token_overlap_auc_of_all_queries:.4f} over the pairs of all queries.",
        "",
    ]
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Measured:
    encoder_id: str
    score_macro_f1: Interval
    cutoffs_macro_f1: Interval
    recall: dict[str, float]
    pairs_without_vector: int
    #: The estimate first, then the resamples.
    auc_R: npt.NDArray[np.float64]
    macro_f1_R: npt.NDArray[np.float64]


def _measure(
    pairs: GradedPairs,
    features: "_Features",
    *,
    test_group_N: npt.NDArray[np.int64],
    weights_RQ: npt.NDArray[np.float64],
) -> _Measured:
    test_N = pairs.role_N == _TEST
    weights_RQ = np.vstack([np.ones((1, weights_RQ.shape[1])), weights_RQ])
    auc = _auc(pairs.grade_N[test_N], features.score_N[test_N], test_group_N)
    auc_R = np.array([auc(weights_Q) for weights_Q in weights_RQ])

    # Encoders know the grades of their training queries by heart: a probe trained on those would trust them.
    held_out_N = pairs.role_N == _VALIDATION
    choose_N = np.zeros_like(held_out_N)
    choose_N[held_out_N] = np.unique(pairs.group_N[held_out_N], return_inverse=True)[1] % 3 == 0

    def hits(predicted_N: npt.NDArray[np.integer]) -> GroupedHits:
        return GroupedHits(pairs.grade_N[test_N], predicted_N, test_group_N)

    def probe(read_NF: npt.NDArray[np.floating]) -> GroupedHits:
        found = linear_probe(read_NF, pairs.grade_N, train_N=held_out_N & ~choose_N, validation_N=choose_N)
        return hits(found.predicted_N[test_N])

    cutoffs = best_cutoffs(features.score_N[held_out_N], pairs.grade_N[held_out_N])
    by_cutoffs = hits(np.searchsorted(cutoffs, features.score_N[test_N], side="left"))

    of_score = probe(features.score_N[:, None])
    of_all = (
        of_score if features.more_NF is None else probe(np.column_stack([features.score_N, features.more_NF]))
    )
    macro_f1_R = of_all.macro_f1(weights_RQ)
    recall_C = of_all.recall(weights_RQ[:1])[0]
    return _Measured(
        encoder_id=features.encoder_id,
        score_macro_f1=interval_of(of_score.macro_f1(weights_RQ)),
        cutoffs_macro_f1=interval_of(by_cutoffs.macro_f1(weights_RQ)),
        recall={name: float(recall) for name, recall in zip(GRADES, recall_C, strict=True)},
        pairs_without_vector=int(np.count_nonzero(features.missing_N[test_N])),
        auc_R=auc_R,
        macro_f1_R=macro_f1_R,
    )


@dataclass(frozen=True, eq=False)
class _Features:
    """What a row knows of each pair: a score, and for vectors |p - q| and p * q as well."""

    encoder_id: str
    score_N: npt.NDArray[np.floating]
    more_NF: FloatArray | None
    missing_N: npt.NDArray[np.bool_]


def _lexical_features(pairs: GradedPairs) -> dict[str, _Features]:
    """A score for each pair; those of train pairs are read by nobody, and zero but for the overlap."""
    queries = pairs.queries.to_pylist()
    titles = [pairs.titles_P[place] for place in pairs.title_N.tolist()]
    overlap_N = np.array([token_overlap(query, title) for query, title in zip(queries, titles, strict=True)])

    def scores(scorer: Scorer, roles: Sequence[int]) -> npt.NDArray[np.float64]:
        score_N = np.zeros(len(queries))
        pairs_of = _pairs_by_query(pairs, roles)
        asked = [queries[pairs_B[0]] for pairs_B in pairs_of]
        for pairs_B, score_P in zip(pairs_of, scorer(pairs.titles_P, asked), strict=True):
            score_N[pairs_B] = score_P[pairs.title_N[pairs_B]]
        return score_N

    def auc_of_validation(scorer: Scorer) -> float:
        kept_N = pairs.role_N == _VALIDATION
        score_N = scores(scorer, (_VALIDATION,))
        return _auc(pairs.grade_N[kept_N], score_N[kept_N], np.zeros(kept_N.sum(), np.int64))(np.ones(1))

    bm25, k1, b = tuned_bm25(auc_of_validation, language="english")
    held_out = (_VALIDATION, _TEST)
    found = {
        OVERLAP: ("words of the query in the title", overlap_N),
        BM25: (f"BM25 of stemmed words, k1 {k1:g}, b {b:g}", scores(bm25, held_out)),
        CHARACTERS: ("cosine of TF-IDF of character 3- and 4-grams", scores(char_tfidf_scores, held_out)),
    }
    known_N = np.zeros(len(queries), bool)
    return {name: _Features(says, score_N, None, known_N) for name, (says, score_N) in found.items()}


def _pairs_by_query(pairs: GradedPairs, roles: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """The pairs of each query that has one of `roles`."""
    kept = np.flatnonzero(np.isin(pairs.role_N, roles))
    order = kept[np.argsort(pairs.group_N[kept], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(pairs.group_N[order])) + 1) if len(order) else []


def _vector_features(pairs: GradedPairs, vectors: Vectors) -> _Features:
    product_ND = unit_vectors(vectors.products, pairs.products)
    query_ND = unit_vectors(vectors.queries, pairs.queries)
    if product_ND.shape[1] != query_ND.shape[1]:
        raise ValueError(
            f"products and queries must lie in one space, but {vectors.products.folder} has width "
            f"{product_ND.shape[1]} and {vectors.queries.folder} {query_ND.shape[1]}; "
            "give tables of one encoder"
        )
    product_of_both_ND = product_ND * query_ND
    return _Features(
        encoder_id=vectors.products.manifest.encoder_id,
        score_N=product_of_both_ND.sum(axis=1),
        more_NF=np.hstack([np.abs(product_ND - query_ND), product_of_both_ND]),
        missing_N=~np.asarray(product_ND.any(axis=1) & query_ND.any(axis=1), bool),
    )


def _fused(vectors: _Features, lexical: _Features, validation_N: npt.NDArray[np.bool_]) -> _Features:
    """The sum of both standardised scores; each of them beside what the probe reads of the vectors."""
    assert vectors.more_NF is not None  # rows of vectors have more than a score
    parts_N2 = np.column_stack([vectors.score_N, lexical.score_N]).astype(np.float32)
    parts_N2 /= parts_N2[validation_N].std(axis=0).clip(1e-9)
    return _Features(
        encoder_id=f"{vectors.encoder_id} + {lexical.encoder_id}",
        score_N=parts_N2.sum(axis=1),
        more_NF=np.hstack([parts_N2, vectors.more_NF]),
        missing_N=vectors.missing_N,
    )


def _auc(
    grade_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.floating], group_N: npt.NDArray[np.int64]
) -> UserWeightedAuc:
    clear_N = (grade_N == _HIGH) | (grade_N == _IRRELEVANT)
    return UserWeightedAuc(grade_N[clear_N] == _HIGH, score_N[clear_N], group_N[clear_N])


def _differences(values: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Interval]:
    return {
        f"{later} - {earlier}": interval_of(values[later] - values[earlier])
        for earlier, later in combinations(values, 2)
    }
