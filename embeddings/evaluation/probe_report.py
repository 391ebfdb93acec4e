"""Results of probes: macro F1 over seeds, recall of each class, confusion matrices; as JSON and Markdown.

Shapes: S seeds, C classes (axis 0 of a confusion matrix the true one, axis 1 the predicted one), N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

IntArray = npt.NDArray[np.integer]
DoubleArray = npt.NDArray[np.float64]
NONE = "–"

TITLES = {
    "aisle": "Aisle of a product",
    "relevance": "Relevance, split over pairs (as the paper)",
    "relevance_interactions": "Relevance with \\|p − q\\| and p · q, over pairs",
    "relevance_unseen_queries": "Relevance, unseen queries",
    "relevance_interactions_unseen_queries": "Relevance with \\|p − q\\| and p · q, unseen queries",
}
#: Macro F1 of the paper (5.1, 5.2): BLIP-14M, DashCLIP. Other products and grades: only directions compare.
PAPER = {"aisle": (0.707, 0.750), "relevance": (0.476, 0.671)}


def confusion_matrix(true_N: IntArray, predicted_N: IntArray, *, classes: int) -> npt.NDArray[np.int64]:
    """How often class i was taken for class j, [C, C]; the sum is N, the trace how many were right."""
    cells_N = np.asarray(true_N, np.int64) * classes + predicted_N
    return np.bincount(cells_N, minlength=classes * classes).reshape(classes, classes)


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


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """One probe on one encoder; entry s is seed s, all on that seed's own test rows."""

    confusion_SCC: npt.NDArray[np.int64]
    #: Epoch whose weights were kept.
    epoch_S: tuple[int, ...]

    @property
    def macro_f1_S(self) -> DoubleArray:
        """Macro F1 of each seed."""
        return np.array([macro_f1(confusion_CC) for confusion_CC in self.confusion_SCC])

    @property
    def accuracy_S(self) -> DoubleArray:
        """Share of right answers of each seed."""
        return np.array([np.trace(matrix_CC) / matrix_CC.sum() for matrix_CC in self.confusion_SCC])

    @property
    def confusion_CC(self) -> npt.NDArray[np.int64]:
        """Counts added up over seeds."""
        return self.confusion_SCC.sum(axis=0)

    @property
    def recall_C(self) -> DoubleArray:
        """Recall of each class over the test rows of all seeds; NaN for a class without any."""
        return recalls(self.confusion_CC)


@dataclass(frozen=True, eq=False)
class ProbeComparison:
    """One probe before and after, on the same rows."""

    classes: tuple[str, ...]
    #: Rows of each class that took part, before the split.
    support_C: tuple[int, ...]
    #: Classes with too few rows for a split, and how many they have.
    left_out: Mapping[str, int]
    #: Rows of the three parts, mean over seeds.
    train_rows: float
    validation_rows: float
    test_rows: float
    before: ProbeResult
    after: ProbeResult

    @property
    def majority_macro_f1(self) -> float:
        """Macro F1 of always answering the most frequent class."""
        rows_C = self.after.confusion_CC.sum(axis=1)
        confusion_CC = np.zeros((len(rows_C), len(rows_C)), np.int64)
        confusion_CC[:, rows_C.argmax()] = rows_C
        return macro_f1(confusion_CC)

    @property
    def difference(self) -> tuple[float, float | None, float | None]:
        """Macro F1 after - before: mean, and a 95 % t-interval over seeds; no limits for a single seed.

        The training rows of two seeds overlap, so the variance is that of the corrected resampled t-test
        (Nadeau and Bengio 2003): times 1/S + test rows / training rows instead of 1/S.
        """
        difference_S = self.after.macro_f1_S - self.before.macro_f1_S
        mean, seeds = float(difference_S.mean()), len(difference_S)
        if seeds == 1:
            return mean, None, None
        factor = 1 / seeds + self.test_rows / (self.train_rows + self.validation_rows)
        half = float(stats.t.ppf(0.975, seeds - 1) * np.sqrt(factor * difference_S.var(ddof=1)))
        return mean, mean - half, mean + half


@dataclass(frozen=True)
class VectorSummary:
    """One encoder: what its cosines say of the grades, without any training."""

    name: str
    dim: int
    #: All zeros among the products with an aisle or a grade, and among the queries with a grade.
    zero_products: int
    zero_queries: int
    #: Mean cosine of the pairs of each grade; None without such pairs.
    mean_cosine: Mapping[str, float | None]
    auc_high_vs_irrelevant: float | None
    auc_high_vs_moderate: float | None
    auc_moderate_vs_irrelevant: float | None


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """Both probes on the encoder before and after training."""

    before: VectorSummary
    after: VectorSummary
    probes: Mapping[str, ProbeComparison]
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything as what JSON can hold; what is undefined is null."""
        return {
            "before": dict(vars(self.before)),
            "after": dict(vars(self.after)),
            "config": dict(self.config),
            "probes": {name: _comparison_json(found) for name, found in self.probes.items()},
        }

    def to_markdown(self) -> str:
        """Macro F1 of every probe, then recall of each grade, then cosines by grade."""
        sides = f"{self.before.name} | {self.after.name}"
        lines = [
            f"| Macro F1 | majority | {sides} | difference | paper |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, found in self.probes.items():
            paper = " → ".join(f"{value:.3f}" for value in PAPER[name]) if name in PAPER else NONE
            values = f"{_mean_sd(found.before.macro_f1_S)} | {_mean_sd(found.after.macro_f1_S)}"
            lines.append(
                f"| {TITLES.get(name, name)} | {found.majority_macro_f1:.3f} | {values} "
                f"| {_limits(found.difference)} | {paper} |"
            )
        for name, found in self.probes.items():
            if name == "aisle":
                continue
            lines += [
                "",
                f"| Recall: {TITLES.get(name, name)} | share of test | {sides} |",
                "|---|---:|---:|---:|",
            ]
            rows_C = found.after.confusion_CC.sum(axis=1)
            lines += [
                f"| {grade} | {share:.3f} | {_number(before)} | {_number(after)} |"
                for grade, share, before, after in zip(
                    found.classes,
                    rows_C / rows_C.sum(),
                    found.before.recall_C,
                    found.after.recall_C,
                    strict=True,
                )
            ]
        lines += ["", f"| Cosine of product and query | {sides} |", "|---|---:|---:|"]
        for grade, before in self.before.mean_cosine.items():
            lines.append(f"| mean, {grade} | {_number(before)} | {_number(self.after.mean_cosine[grade])} |")
        for name in ("auc_high_vs_irrelevant", "auc_high_vs_moderate", "auc_moderate_vs_irrelevant"):
            title = name.removeprefix("auc_").replace("_vs_", " above ")
            aucs = (_number(getattr(side, name)) for side in (self.before, self.after))
            lines.append(f"| AUC, {title} | {' | '.join(aucs)} |")
        return "\n".join(lines) + "\n"


def _comparison_json(found: ProbeComparison) -> dict[str, Any]:
    mean, low, high = found.difference
    return {
        "classes": list(found.classes),
        "support": list(found.support_C),
        "left_out": dict(found.left_out),
        "rows": {
            "train": found.train_rows,
            "validation": found.validation_rows,
            "test": found.test_rows,
        },
        "majority_macro_f1": found.majority_macro_f1,
        "before": _result_json(found.before, found.classes),
        "after": _result_json(found.after, found.classes),
        "difference": {"macro_f1": mean, "macro_f1_low": low, "macro_f1_high": high},
    }


def _result_json(result: ProbeResult, classes: Sequence[str]) -> dict[str, Any]:
    recall = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(classes, result.recall_C, strict=True)
    }
    return {
        "macro_f1": float(result.macro_f1_S.mean()),
        "macro_f1_sd": _sd(result.macro_f1_S),
        "macro_f1_per_seed": result.macro_f1_S.tolist(),
        "accuracy": float(result.accuracy_S.mean()),
        "accuracy_sd": _sd(result.accuracy_S),
        "recall": recall,
        "confusion": result.confusion_CC.tolist(),
        "epochs": list(result.epoch_S),
    }


def _sd(value_S: DoubleArray) -> float | None:
    """Sample standard deviation; None for a single seed."""
    return float(value_S.std(ddof=1)) if len(value_S) > 1 else None


def _mean_sd(value_S: DoubleArray) -> str:
    sd = _sd(value_S)
    return f"{value_S.mean():.3f}" + ("" if sd is None else f" ± {sd:.3f}")


def _limits(difference: tuple[float, float | None, float | None]) -> str:
    mean, low, high = difference
    return f"{mean:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")


def _number(value: float | None) -> str:
    return NONE if value is None or np.isnan(value) else f"{value:.3f}"
