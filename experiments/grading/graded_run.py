"""The grades of a run beside people's: shares of grades with prediction-powered limits, and what it cost.

A run grades pairs that people have not. Where a grader errs alike on both, what it says of pairs of test
queries that people graded puts right what it says of the others.

Shapes: N test pairs with grades of people, C = 3 grades.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.grading.pairs import GradedPairs, GradingError
from embeddings.grading.run import parts_of, read_manifest
from embeddings.relevance.grades import GRADES, PROBABILITIES
from experiments.statistics.cells import Intervals
from experiments.statistics.prediction_powered import GroupSums, prediction_powered_mean
from features.artifacts import ResultFile

FloatArray = npt.NDArray[np.float64]

#: So many pairs the paper has graded.
PAPER_PAIRS = 32_000_000


class GradedRun(ResultFile):
    """A run of a grader; shares are by name of grade."""

    grader: str
    #: Pairs of test queries that people graded, and pairs of the run that nobody did.
    people_pairs: int
    graded_pairs: int
    people_shares: Intervals
    #: What the grader says of its pairs, its errors and all.
    grader_shares: dict[str, float]
    powered_shares: Intervals
    #: How much the predictions count, from 0 to 1.
    tuning: dict[str, float]
    #: Mean probability of the run's pairs - that of people's. Away from 0 they are pairs of different kinds.
    shift: Intervals
    tokens_per_pair: float
    #: At the price given; None without one.
    money_for_32m_pairs: float | None

    @property
    def of_one_kind(self) -> bool:
        """The grader sees no difference between the run's pairs and people's."""
        return not any(interval.excludes_zero for interval in self.shift.values())


def measure_run(
    run: Path,
    kept: GradedPairs,
    known: frozenset[tuple[str, object]],
    said: Mapping[str, FloatArray],
    *,
    price_per_million_tokens: float = 0.0,
) -> GradedRun:
    """Shares of grades among the pairs of a run that are not `known`, i.e. graded by people.

    Args:
        kept: pairs of test queries with people's grades.
        said: probabilities [N, C] of `kept` by name of the grader that says so. Of another grader the run's
            own answers to these pairs count.

    Raises:
        GradingError: the run is none, holds none but known pairs, or its grader has graded none of `kept`.
    """
    manifest = read_manifest(run)
    parts = parts_of(run)
    if manifest is None or not parts:
        raise GradingError(f"{run} holds no grades yet; `dashclip grade run` makes them")
    ids = kept.pairs.product_ids.to_pylist()
    place_of = {pair: row for row, pair in enumerate(zip(kept.pairs.queries, ids, strict=True))}
    own_NC = np.full((len(kept), len(GRADES)), np.nan)
    sums = []
    for part in parts:
        content = pq.read_table(part, columns=["query", "product_id", *PROBABILITIES])
        pairs = list(zip(content["query"].to_pylist(), content["product_id"].to_pylist(), strict=True))
        p_NC = np.column_stack([content[name].to_numpy() for name in PROBABILITIES]).astype(np.float64)
        for row, pair in enumerate(pairs):
            if pair in place_of:
                own_NC[place_of[pair]] = p_NC[row]
        others = content.filter(pa.array([pair not in known for pair in pairs], pa.bool_()))
        sums.append(_by_query(others.append_column("pairs", pa.array(np.ones(len(others), np.int64)))))
    probability_NC = said.get(manifest.grader, own_NC)
    answered = ~np.isnan(probability_NC.sum(axis=1))
    if not answered.any():
        raise GradingError(
            f"{manifest.grader} has graded none of the test pairs that people graded; report the grader of "
            f"{run} as well, or let the run grade these pairs, too"
        )
    others = _by_query(pa.concat_tables(sums))
    if not others.num_rows:
        raise GradingError(f"people graded every pair of {run}; shares need pairs that they did not")
    return _shares(
        manifest.grader,
        [query for query, here in zip(kept.pairs.queries, answered, strict=True) if here],
        kept.grade_N[answered],
        probability_NC[answered],
        others,
        tokens_per_pair=manifest.tokens / max(manifest.graded, 1),
        price=price_per_million_tokens,
    )


def money_for_paper_pairs(tokens_per_pair: float, price_per_million_tokens: float) -> float | None:
    """What 32 million pairs would cost; None without tokens or price."""
    return tokens_per_pair * PAPER_PAIRS / 1e6 * price_per_million_tokens or None


def _shares(
    grader: str,
    queries: list[str],
    grade_N: npt.NDArray[np.int64],
    probability_NC: FloatArray,
    others: pa.Table,
    *,
    tokens_per_pair: float,
    price: float,
) -> GradedRun:
    number_of: dict[str, int] = {}
    group_N = np.array([number_of.setdefault(query, len(number_of)) for query in queries], np.int64)
    other_group_N = np.array(
        [number_of.setdefault(query, len(number_of)) for query in others["query"].to_pylist()], np.int64
    )
    groups = len(number_of)
    others_G = _sums(other_group_N, others["pairs"].to_numpy(), groups).astype(np.int64)
    found = {}
    for grade, name in enumerate(GRADES):
        of_others = others[PROBABILITIES[grade]].to_numpy()
        found[name] = prediction_powered_mean(
            GroupSums(
                labelled_G=np.bincount(group_N, minlength=groups),
                label_G=_sums(group_N, grade_N == grade, groups),
                predicted_G=_sums(group_N, probability_NC[:, grade], groups),
                others_G=others_G,
                other_predicted_G=_sums(other_group_N, of_others, groups),
            )
        )
    pairs = int(others_G.sum())
    return GradedRun(
        grader=grader,
        people_pairs=len(queries),
        graded_pairs=pairs,
        people_shares={name: one.labels_alone for name, one in found.items()},
        grader_shares={
            name: float(others[column].to_numpy().sum() / pairs)
            for name, column in zip(GRADES, PROBABILITIES, strict=True)
        },
        powered_shares={name: one.powered for name, one in found.items()},
        tuning={name: one.tuning for name, one in found.items()},
        shift={name: one.shift for name, one in found.items()},
        tokens_per_pair=tokens_per_pair,
        money_for_32m_pairs=money_for_paper_pairs(tokens_per_pair, price),
    )


def _sums(group_N: npt.NDArray[np.int64], values_N: npt.NDArray[Any], groups: int) -> FloatArray:
    return np.bincount(group_N, values_N, groups).astype(np.float64)


def _by_query(table: pa.Table) -> pa.Table:
    """Sums of probabilities and pairs of each query."""
    names = (*PROBABILITIES, "pairs")
    found = table.group_by("query").aggregate([(name, "sum") for name in names])
    return found.select(["query", *(f"{name}_sum" for name in names)]).rename_columns(["query", *names])
