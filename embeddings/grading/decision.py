"""From a model's probabilities to calibrated ones and to one grade, learnt from validation queries.

The most probable grade is not the best answer where grades are noisy: it is hardly ever the rarest. Two
offsets, one for irrelevant and one for high, repair that.

The cosine of an encoder that was aligned with the grades of train queries knows those by heart, so a
classifier may not learn from it. Here it may be read: validation queries taught it nothing. But a cosine is
fooled by a title that is stuffed with the query's words, which no graded pair shows; so stuffed titles may
stand beside them. They turn the slopes, never the shares of the grades or the offsets.

Shapes: N pairs, M stuffed titles, C = 3 grades, X = C + further inputs.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.classifiers import fit_logistic_regression, softmax
from embeddings.relevance.grades import GRADES, HIGH, IRRELEVANT

FloatArray = npt.NDArray[np.float64]

#: Logarithms of what the probabilities of irrelevant and of high are multiplied by.
_OFFSETS = np.round(np.linspace(-1.0, 2.0, 31), 2)
_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class StuffedTitles:
    """What a model says of M stuffed titles, all irrelevant, and what each weighs beside a graded pair."""

    raw_MC: FloatArray
    further_ME: FloatArray
    weight: float


@dataclass(frozen=True, eq=False)
class Decision:
    """Calibrated log odds = `slopes_CX` @ (log p, further) + `intercepts_C`.

    The grade is where log odds + `offsets_C` are largest.
    """

    #: Of its arrays in a grader's file.
    NAMES: ClassVar[tuple[str, ...]] = ("slopes", "intercepts_of_decision", "offsets")

    slopes_CX: FloatArray
    intercepts_C: FloatArray
    offsets_C: FloatArray

    @classmethod
    def neutral(cls, further: int = 0) -> "Decision":
        """Probabilities as they are, and the most probable grade; further inputs do not count."""
        classes = len(GRADES)
        return cls(np.eye(classes, classes + further), np.zeros(classes), np.zeros(classes))

    @classmethod
    def learn(
        cls,
        raw_NC: FloatArray,
        grade_N: npt.NDArray[np.integer],
        further_NE: FloatArray | None = None,
        *,
        stuffed: StuffedTitles | None = None,
    ) -> "Decision":
        """Calibrate on human grades of validation queries, then choose offsets of the best macro F1.

        With `stuffed` the slopes learn from these titles, too; the intercepts are fitted to the human grades
        alone, so that the mean probabilities of their pairs stay the shares of the grades. Grades of which
        people gave none on these queries leave everything as it is.
        """
        if len(np.unique(grade_N)) < len(GRADES):
            return cls.neutral(0 if further_NE is None else further_NE.shape[1])
        inputs_NX = _inputs(raw_NC, further_NE)
        # In standard deviations, or the penalty would keep the weights of narrow inputs small.
        scale_X = np.ones(inputs_NX.shape[1])
        scale_X[len(GRADES) :] = inputs_NX[:, len(GRADES) :].std(axis=0).clip(_SMALLEST)
        learnt_NX, learnt_N, weight_N = inputs_NX, grade_N, None
        if stuffed is not None:
            more_MX = _inputs(stuffed.raw_MC, stuffed.further_ME)
            learnt_NX = np.vstack([inputs_NX, more_MX])
            learnt_N = np.concatenate([grade_N, np.full(len(more_MX), IRRELEVANT)])
            weight_N = np.repeat([1.0, stuffed.weight], [len(inputs_NX), len(more_MX)])
        model = fit_logistic_regression(learnt_NX / scale_X, learnt_N, weight_N)
        slopes_CX = model.coef_.astype(np.float64) / scale_X
        intercepts_C = model.intercept_.astype(np.float64)
        if stuffed is not None:
            intercepts_C = _intercepts(inputs_NX @ slopes_CX.T, grade_N, intercepts_C)
        found = cls(slopes_CX, intercepts_C, np.zeros(len(GRADES)))
        logs_NC = logs(found.probabilities(raw_NC, further_NE))
        best = -1.0
        for irrelevant, high in product(_OFFSETS, _OFFSETS):
            offsets_C = np.zeros(len(GRADES))
            offsets_C[IRRELEVANT], offsets_C[HIGH] = irrelevant, high
            score = macro_f1(grade_N, (logs_NC + offsets_C).argmax(axis=1))
            if score > best:
                best, chosen_C = score, offsets_C
        return cls(found.slopes_CX, found.intercepts_C, chosen_C)

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> "Decision":
        """The decision among the arrays of a grader, which are left without it."""
        return cls(*(arrays.pop(name) for name in cls.NAMES))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The decision as arrays by name, which `from_arrays` reads."""
        arrays = (self.slopes_CX, self.intercepts_C, self.offsets_C)
        # safetensors writes the bytes of an array as they lie in memory.
        return dict(zip(self.NAMES, map(np.ascontiguousarray, arrays), strict=True))

    def probabilities(self, raw_NC: FloatArray, further_NE: FloatArray | None = None) -> FloatArray:
        """Calibrated probabilities [N, C]."""
        return softmax(_inputs(raw_NC, further_NE) @ self.slopes_CX.T + self.intercepts_C)

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """One grade [N] for each row of calibrated probabilities."""
        return (logs(probabilities_NC) + self.offsets_C).argmax(axis=1).astype(np.int8)


def _intercepts(logits_NC: FloatArray, grade_N: npt.NDArray[np.integer], start_C: FloatArray) -> FloatArray:
    """Those of the largest likelihood: where mean probabilities are the shares of the grades."""
    truth_NC = np.eye(len(GRADES))[grade_N]

    def surprise(intercepts_C: FloatArray) -> tuple[float, FloatArray]:
        found_NC = softmax(logits_NC + intercepts_C)
        return float(-np.log((found_NC * truth_NC).sum(axis=1)).mean()), (found_NC - truth_NC).mean(axis=0)

    return np.asarray(minimize(surprise, start_C, jac=True).x, np.float64)


def _inputs(raw_NC: FloatArray, further_NE: FloatArray | None) -> FloatArray:
    logs_NC = logs(raw_NC)
    return logs_NC if further_NE is None else np.hstack([logs_NC, further_NE])


def logs(probabilities_NC: FloatArray) -> FloatArray:
    """Natural logarithms [N, C], of a millionth at least."""
    return np.log(probabilities_NC.clip(_SMALLEST))
