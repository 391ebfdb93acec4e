"""How well scores and vectors tell pairs apart that people graded, on queries never trained on.

A pair has one score, most often the cosine of its query and product. Figures are of the test queries' pairs;
what has to be learnt to have grades (a probe, two cutoffs) is learnt on validation queries: encoders know the
grades of their train queries by heart. Resamples draw whole queries, as pairs of one query are not
independent, and whoever is measured on the same data sees the same draws, so that differences are paired.

Shapes: N pairs, D embedding width, F features, R the estimate and its resamples, Q test queries.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION, HoldoutConfig
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.linear_probe import (
    GroupedHits,
    best_cutoffs,
    group_resamples,
    linear_probe,
    unit_vectors,
)
from embeddings.grading.pairs import Catalogue, GradedPairs, read_graded_pairs
from embeddings.relevance.grades import GRADES, HIGH, IRRELEVANT, sources_of
from experiments.statistics.intervals import UserWeightedAuc

FloatArray = npt.NDArray[np.float64]
ROLES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


class TooFewPairsError(ValueError):
    """Held-out queries lack pairs of a grade that is measured."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """What is known of each pair: a score, and of vectors what a probe reads beside it."""

    score_N: npt.NDArray[np.floating]
    more_NF: npt.NDArray[np.float32] | None = None
    #: Pairs of which the query or the product has no vector or zeros; their score is 0.
    missing_N: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of_tables(cls, graded: GradedPairs, products: EmbeddingTable, queries: EmbeddingTable) -> Self:
        """The cosine, and |p - q| and p * q of unit vectors p and q.

        Raises:
            ValueError: the tables are of different widths.
        """
        product_ND = unit_vectors(products, graded.pairs.product_ids)
        query_ND = unit_vectors(queries, pa.array(graded.pairs.queries, pa.string()))
        if product_ND.shape[1] != query_ND.shape[1]:
            raise ValueError(
                f"products and queries must lie in one space, but {products.folder} has width "
                f"{product_ND.shape[1]} and {queries.folder} {query_ND.shape[1]}; give tables of one encoder"
            )
        product_of_both_ND = product_ND * query_ND
        return cls(
            score_N=product_of_both_ND.sum(axis=1),
            more_NF=np.hstack([np.abs(product_ND - query_ND), product_of_both_ND]),
            missing_N=~np.asarray(product_ND.any(axis=1) & query_ND.any(axis=1), bool),
        )

    @property
    def read_NF(self) -> npt.NDArray[np.floating]:
        """All features of a probe."""
        score_N1 = self.score_N[:, None]
        return score_N1 if self.more_NF is None else np.hstack([score_N1, self.more_NF])


@dataclass(frozen=True, eq=False)
class PairTest:
    """The graded pairs of a data folder, and the draws of its test queries."""

    graded: GradedPairs
    catalogue: Catalogue
    #: Row of each pair's product in the catalogue.
    product_N: npt.NDArray[np.int64]
    #: Of the pairs of test queries alone.
    test_group_T: npt.NDArray[np.int64]
    #: The first row weighs every query 1.
    weights_RQ: FloatArray

    @classmethod
    def read(cls, data: Path, holdout: HoldoutConfig, *, resamples: int = 1000, seed: int = 0) -> Self:
        """The pairs of `data`, one grade each: of several sources the first in `sources_of` counts.

        A pair whose product the catalogue lacks is left out, as in training.

        Raises:
            InputError: a table is missing.
            TooFewPairsError: validation or test queries have no high or no irrelevant pair.
        """
        catalogue = Catalogue.read(data)
        graded = read_graded_pairs(data, holdout, catalogue=catalogue, sources=sources_of(data))
        for role in (VALIDATION, TEST):
            grades = graded.grade_N[graded.role_N == role]
            if not (IRRELEVANT in grades and HIGH in grades):
                raise TooFewPairsError(
                    f"the {ROLES[role]} queries of {data} must have pairs graded high and irrelevant, but "
                    f"their {len(grades):,} pairs lack one; give more grades or other shares of held-out "
                    "queries"
                )
        product_N = pc.index_in(graded.pairs.product_ids, value_set=catalogue.product_ids)
        group_N = graded.group_N[graded.role_N == TEST]
        test_group_T = np.unique(group_N, return_inverse=True)[1].astype(np.int64)
        queries = int(test_group_T.max()) + 1
        draws_RQ = group_resamples(queries, resamples, np.random.default_rng(seed))
        return cls(
            graded=graded,
            catalogue=catalogue,
            product_N=product_N.to_numpy(zero_copy_only=False).astype(np.int64),
            test_group_T=test_group_T,
            weights_RQ=np.vstack([np.ones((1, queries)), draws_RQ]),
        )

    def is_of(self, role: int) -> npt.NDArray[np.bool_]:
        """Which pairs [N] have queries of a role."""
        return np.asarray(self.graded.role_N == role, bool)

    def auc(self, score_N: npt.NDArray[np.floating]) -> FloatArray:
        """Probability [R] that a high pair scores above an irrelevant one, ties counting half."""
        test_N = self.is_of(TEST)
        auc = auc_of_pairs(self.graded.grade_N[test_N], score_N[test_N], self.test_group_T)
        return np.array([auc(weights_Q) for weights_Q in self.weights_RQ])

    def hits(self, predicted_N: npt.NDArray[np.integer]) -> GroupedHits:
        """Grades that were predicted for all pairs, against people's, on those of test queries."""
        test_N = self.is_of(TEST)
        return GroupedHits(self.graded.grade_N[test_N], predicted_N[test_N], self.test_group_T)

    def macro_f1(self, predicted_N: npt.NDArray[np.integer]) -> FloatArray:
        """Macro F1 [R] of the three grades."""
        return self.hits(predicted_N).macro_f1(self.weights_RQ)

    def recall(self, predicted_N: npt.NDArray[np.integer]) -> dict[str, float]:
        """Of each grade, by name."""
        recall_C = self.hits(predicted_N).recall(self.weights_RQ[:1])[0]
        return dict(zip(GRADES, recall_C.tolist(), strict=True))

    def by_cutoffs(self, score_N: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Grades [N] by the two cutoffs of the score that have the best macro F1 on validation queries."""
        held_out_N = self.is_of(VALIDATION)
        cutoffs = best_cutoffs(score_N[held_out_N], self.graded.grade_N[held_out_N])
        return np.searchsorted(cutoffs, score_N, side="left").astype(np.int64)

    def by_probe(self, read_NF: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Grades [N] by a linear probe, trained on two thirds of the validation queries.

        Its strength is chosen on the others; all grades weigh the same.
        """
        held_out_N = self.is_of(VALIDATION)
        choose_N = np.zeros_like(held_out_N)
        place = np.unique(self.graded.group_N[held_out_N], return_inverse=True)[1]
        choose_N[held_out_N] = place % 3 == 0
        found = linear_probe(
            read_NF, self.graded.grade_N, train_N=held_out_N & ~choose_N, validation_N=choose_N
        )
        return found.predicted_N


def auc_of_pairs(
    grade_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.floating], group_N: npt.NDArray[np.int64]
) -> UserWeightedAuc:
    """AUC of high against irrelevant pairs under weights of their groups."""
    clear_N = (grade_N == HIGH) | (grade_N == IRRELEVANT)
    return UserWeightedAuc(grade_N[clear_N] == HIGH, score_N[clear_N], group_N[clear_N])
