"""`probes.json`: macro F1 of probes over seeds, recall of each class, confusion matrices.

Shapes: S seeds, C classes (axis 0 of a confusion matrix the true one, axis 1 the predicted one), N rows.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from features.artifacts import ResultFile

IntArray = npt.NDArray[np.integer]
DoubleArray = npt.NDArray[np.float64]


def recalls(confusion_CC: npt.NDArray[np.int64]) -> DoubleArray:
    """Share of each class's rows that were found, [C]; NaN where the class has no row."""
    rows_C = confusion_CC.sum(axis=1)
    return np.where(rows_C > 0, np.diag(confusion_CC) / np.maximum(rows_C, 1), np.nan)


def macro_f1(confusion_CC: npt.NDArray[np.int64]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); a class neither there nor predicted is left out.

    Three balanced classes and one constant answer give (1/2 + 0 + 0) / 3 = 1/6.
    """
    denominator_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1)
    present_C = denominator_C > 0
    return float(np.mean(2 * np.diag(confusion_CC)[present_C] / denominator_C[present_C]))


def grade_auc(cosine_N: npt.NDArray[np.floating], grade_N: IntArray, *, high: int, low: int) -> float | None:
    """Chance that a pair of grade `high` has a higher cosine than one of grade `low`, ties one half.

    None when one of the two grades has no pair.
    """
    high_M, low_M = cosine_N[grade_N == high], cosine_N[grade_N == low]
    if not len(high_M) or not len(low_M):
        return None
    rank_M = stats.rankdata(np.concatenate([high_M, low_M]))[: len(high_M)]
    wins = rank_M.sum() - len(high_M) * (len(high_M) + 1) / 2
    return float(wins / (len(high_M) * len(low_M)))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ProbeResult(_Part):
    """One probe on one encoder; each seed is tested on its own rows."""

    macro_f1: float
    macro_f1_sd: float | None
    macro_f1_per_seed: tuple[float, ...]
    #: Share of right answers.
    accuracy: float
    accuracy_sd: float | None
    #: Over the test rows of all seeds; None for a class without any.
    recall: dict[str, float | None]
    #: Counts [C, C], added up over seeds.
    confusion: tuple[tuple[int, ...], ...]
    #: Whose weights were kept, by seed.
    epochs: tuple[int, ...]

    @classmethod
    def of(
        cls, confusion_SCC: npt.NDArray[np.int64], *, classes: Sequence[str], epochs: Sequence[int]
    ) -> Self:
        """The result of confusion matrices, one a seed."""
        macro_f1_S = np.array([macro_f1(confusion_CC) for confusion_CC in confusion_SCC])
        accuracy_S = np.array([np.trace(matrix_CC) / matrix_CC.sum() for matrix_CC in confusion_SCC])
        confusion_CC = confusion_SCC.sum(axis=0)
        recall_C = recalls(confusion_CC).tolist()
        return cls(
            macro_f1=float(macro_f1_S.mean()),
            macro_f1_sd=_sd(macro_f1_S),
            macro_f1_per_seed=tuple(macro_f1_S.tolist()),
            accuracy=float(accuracy_S.mean()),
            accuracy_sd=_sd(accuracy_S),
            recall={
                name: None if np.isnan(recall) else recall
                for name, recall in zip(classes, recall_C, strict=True)
            },
            confusion=confusion_CC.tolist(),
            epochs=tuple(epochs),
        )

    @property
    def macro_f1_S(self) -> DoubleArray:
        """Macro F1 of each seed."""
        return np.array(self.macro_f1_per_seed)

    @property
    def confusion_CC(self) -> npt.NDArray[np.int64]:
        """Counts added up over seeds."""
        return np.array(self.confusion, np.int64)

    @property
    def recall_C(self) -> DoubleArray:
        """Recall of each class; NaN for a class without test rows."""
        return np.array(list(self.recall.values()), np.float64)


class PartRows(_Part):
    """Rows of the three parts of a split, mean over seeds."""

    train: float
    validation: float
    test: float


class Difference(_Part):
    """Macro F1 after - before: mean, and a 95 % t-interval over seeds; no limits for a single seed."""

    mean: float = Field(alias="macro_f1")
    low: float | None = Field(alias="macro_f1_low")
    high: float | None = Field(alias="macro_f1_high")


class ProbeComparison(_Part):
    """One probe before and after, on the same rows."""

    classes: tuple[str, ...]
    #: Rows of each class that took part, before the split.
    support: tuple[int, ...]
    #: Classes with too few rows for a split, and how many they have.
    left_out: dict[str, int]
    rows: PartRows
    #: Of always answering the most frequent class.
    majority_macro_f1: float
    before: ProbeResult
    after: ProbeResult
    difference: Difference

    @classmethod
    def of(cls, before: ProbeResult, after: ProbeResult, *, rows: PartRows, **counts: Any) -> Self:
        """Two results compared; `counts` are classes, support and left_out.

        The training rows of two seeds overlap, so the variance of the difference is that of the corrected
        resampled t-test (Nadeau and Bengio 2003): times 1/S + test rows / training rows instead of 1/S.
        """
        rows_C = after.confusion_CC.sum(axis=1)
        majority_CC = np.zeros_like(after.confusion_CC)
        majority_CC[:, rows_C.argmax()] = rows_C
        difference_S = after.macro_f1_S - before.macro_f1_S
        mean, seeds, half = float(difference_S.mean()), len(difference_S), None
        if seeds > 1:
            factor = 1 / seeds + rows.test / (rows.train + rows.validation)
            half = float(stats.t.ppf(0.975, seeds - 1) * np.sqrt(factor * difference_S.var(ddof=1)))
        return cls(
            **counts,
            rows=rows,
            majority_macro_f1=macro_f1(majority_CC),
            before=before,
            after=after,
            difference=Difference(
                macro_f1=mean,
                macro_f1_low=None if half is None else mean - half,
                macro_f1_high=None if half is None else mean + half,
            ),
        )


class VectorSummary(_Part):
    """One encoder: what its cosines say of the grades, without any training."""

    name: str
    dim: int
    #: All zeros among the products with an aisle or a grade, and among the queries with a grade.
    zero_products: int
    zero_queries: int
    #: Mean cosine of the pairs of each grade; None without such pairs.
    mean_cosine: dict[str, float | None]
    auc_high_vs_irrelevant: float | None
    auc_high_vs_moderate: float | None
    auc_moderate_vs_irrelevant: float | None


class ProbeReport(ResultFile):
    """`probes.json`: both probes on the encoder before and after training."""

    before: VectorSummary
    after: VectorSummary
    config: dict[str, Any]
    probes: dict[str, ProbeComparison]
    #: Probes that the labels do not allow, and why.
    left_out: dict[str, str] = Field(default_factory=dict)
    command: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)


def _sd(value_S: DoubleArray) -> float | None:
    """Sample standard deviation; None for a single seed."""
    return float(value_S.std(ddof=1)) if len(value_S) > 1 else None
