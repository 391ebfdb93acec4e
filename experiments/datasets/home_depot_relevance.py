"""How well vectors tell Home Depot's relevant products from irrelevant ones, on queries never trained on.

Every row gives a graded pair one score: the cosine of its query and product, or what query and title share:
the floor is how many of the query's words the title has, stemmed BM25 and the cosine of character n-grams are
the strongest that no training costs. What is measured of a score, and on which pairs, is in `pair_measures`.

Shapes: N pairs, D embedding width, R the estimate and its resamples.
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

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION, HoldoutConfig
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.lexical import Scorer, char_tfidf_scores, token_overlap, tuned_bm25
from embeddings.relevance.grades import GRADES
from experiments.encoders.pair_measures import ROLES, PairScores, PairTest, auc_of_pairs
from experiments.statistics.cells import Intervals, interval_of, markdown_table, with_limits
from experiments.statistics.intervals import Interval
from features.artifacts import ResultFile
from features.progress import Progress, silent

OVERLAP, BM25, CHARACTERS = "token_overlap", "bm25_stemmed", "char_tfidf"


@dataclass(frozen=True, eq=False)
class Vectors:
    """The two tables of one encoder."""

    products: EmbeddingTable
    queries: EmbeddingTable


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
    macro_f1_of_cutoffs_differences: Intervals = Field(default_factory=dict)
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
        InputError: a table is missing.
        ValueError: a role of queries has no high or no irrelevant pair.
    """
    holdout = holdout or HoldoutConfig()
    test = PairTest.read(data, holdout, resamples=resamples, seed=seed)
    progress("scoring words and n-grams", 0, 1)
    rows = _lexical_rows(test)
    lexical = dict(rows)
    for name, of in vectors.items():
        scores = PairScores.of_tables(test.graded, of.products, of.queries)
        rows[name] = _Row(of.products.manifest.encoder_id, scores)
    for words in (OVERLAP, CHARACTERS):
        for name in vectors:
            if name in fused:
                rows[f"{name} + {words}"] = _fused(rows[name], lexical[words], test.is_of(VALIDATION))
    measured: dict[str, _Measured] = {}
    for done, (name, row) in enumerate(rows.items()):
        progress("probing", done, len(rows))
        measured[name] = _measure(test, row.scores)
    graded, test_N = test.graded, test.is_of(TEST)
    products = graded.pairs.product_ids
    seen = pc.is_in(products, value_set=products.filter(pa.array(test.is_of(TRAIN))))
    return HomeDepotResults(
        auc_high_vs_irrelevant={name: interval_of(row.auc_R) for name, row in measured.items()},
        macro_f1={name: interval_of(row.macro_f1_R) for name, row in measured.items()},
        macro_f1_of_the_score={name: row.score_macro_f1 for name, row in measured.items()},
        macro_f1_of_cutoffs={name: interval_of(row.cutoffs_R) for name, row in measured.items()},
        recall={name: row.recall for name, row in measured.items()},
        auc_differences=_differences({name: row.auc_R for name, row in measured.items()}),
        macro_f1_differences=_differences({name: row.macro_f1_R for name, row in measured.items()}),
        macro_f1_of_cutoffs_differences=_differences({name: row.cutoffs_R for name, row in measured.items()}),
        encoders={name: row.encoder_id for name, row in rows.items()},
        pairs_without_vector={name: row.missing(test_N) for name, row in rows.items()},
        queries={name: len(np.unique(graded.group_N[test.is_of(role)])) for role, name in ROLES.items()},
        test_pairs={
            name: int(np.count_nonzero(graded.grade_N[test_N] == grade)) for grade, name in enumerate(GRADES)
        },
        holdout=holdout,
        products_seen_in_training=float(seen.to_numpy(zero_copy_only=False)[test_N].mean()),
        token_overlap_auc_of_all_queries=_auc_of(graded.grade_N, lexical[OVERLAP].scores.score_N),
    )


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
    compared = {"AUC": results.auc_differences, "Macro F1": results.macro_f1_differences}
    if results.macro_f1_of_cutoffs_differences:
        compared["Macro F1 of two cutoffs"] = results.macro_f1_of_cutoffs_differences
    differences = (
        (name, *(with_limits(of[name]) for of in compared.values())) for name in results.auc_differences
    )
    lines += ["", *markdown_table(("Difference", *compared), differences)]
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
class _Row:
    encoder_id: str
    scores: PairScores

    def missing(self, rows_N: npt.NDArray[np.bool_]) -> int:
        """Of these pairs, those without a vector."""
        found_N = self.scores.missing_N
        return 0 if found_N is None else int(np.count_nonzero(found_N[rows_N]))


@dataclass(frozen=True, eq=False)
class _Measured:
    score_macro_f1: Interval
    recall: dict[str, float]
    auc_R: npt.NDArray[np.float64]
    macro_f1_R: npt.NDArray[np.float64]
    cutoffs_R: npt.NDArray[np.float64]


def _measure(test: PairTest, scores: PairScores) -> _Measured:
    of_score_N = test.by_probe(scores.score_N[:, None])
    of_all_N = of_score_N if scores.more_NF is None else test.by_probe(scores.read_NF)
    return _Measured(
        score_macro_f1=interval_of(test.macro_f1(of_score_N)),
        recall=test.recall(of_all_N),
        auc_R=test.auc(scores.score_N),
        macro_f1_R=test.macro_f1(of_all_N),
        cutoffs_R=test.macro_f1(test.by_cutoffs(scores.score_N)),
    )


def _lexical_rows(test: PairTest) -> dict[str, _Row]:
    """A score for each pair; those of train pairs are read by nobody, and zero but for the overlap."""
    pairs, titles_P = test.graded.pairs, test.catalogue.texts
    overlap_N = np.array(
        [token_overlap(query, title) for query, title in zip(pairs.queries, pairs.texts, strict=True)]
    )

    def scores(scorer: Scorer, roles: Sequence[int]) -> npt.NDArray[np.float64]:
        score_N = np.zeros(len(pairs))
        pairs_of = _pairs_by_query(test, roles)
        asked = [pairs.queries[pairs_B[0]] for pairs_B in pairs_of]
        for pairs_B, score_P in zip(pairs_of, scorer(titles_P, asked), strict=True):
            score_N[pairs_B] = score_P[test.product_N[pairs_B]]
        return score_N

    def auc_of_validation(scorer: Scorer) -> float:
        kept_N = test.is_of(VALIDATION)
        return _auc_of(test.graded.grade_N[kept_N], scores(scorer, (VALIDATION,))[kept_N])

    bm25, k1, b = tuned_bm25(auc_of_validation, language="english")
    held_out = (VALIDATION, TEST)
    found = {
        OVERLAP: ("words of the query in the title", overlap_N),
        BM25: (f"BM25 of stemmed words, k1 {k1:g}, b {b:g}", scores(bm25, held_out)),
        CHARACTERS: ("cosine of TF-IDF of character 3- and 4-grams", scores(char_tfidf_scores, held_out)),
    }
    return {name: _Row(says, PairScores(score_N)) for name, (says, score_N) in found.items()}


def _pairs_by_query(test: PairTest, roles: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """The pairs of each query that has one of `roles`."""
    group_N = test.graded.group_N
    kept = np.flatnonzero(np.isin(test.graded.role_N, roles))
    order = kept[np.argsort(group_N[kept], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(group_N[order])) + 1) if len(order) else []


def _fused(vectors: _Row, lexical: _Row, validation_N: npt.NDArray[np.bool_]) -> _Row:
    """The sum of both standardised scores; each of them beside what the probe reads of the vectors."""
    assert vectors.scores.more_NF is not None  # rows of vectors have more than a score
    parts_N2 = np.column_stack([vectors.scores.score_N, lexical.scores.score_N]).astype(np.float32)
    parts_N2 /= parts_N2[validation_N].std(axis=0).clip(1e-9)
    scores = PairScores(
        score_N=parts_N2.sum(axis=1),
        more_NF=np.hstack([parts_N2, vectors.scores.more_NF]),
        missing_N=vectors.scores.missing_N,
    )
    return _Row(f"{vectors.encoder_id} + {lexical.encoder_id}", scores)


def _auc_of(grade_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.floating]) -> float:
    return auc_of_pairs(grade_N, score_N, np.zeros(len(grade_N), np.int64))(np.ones(1))


def _differences(values: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Interval]:
    return {
        f"{later} - {earlier}": interval_of(values[later] - values[earlier])
        for earlier, later in combinations(values, 2)
    }
