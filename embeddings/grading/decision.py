"""From a model's probabilities to calibrated ones and to one grade, learnt from validation queries.

The most probable grade is not the best answer where grades are noisy: it is hardly ever the rarest. Two
offsets, one for irrelevant and one for high, repair that.

Shapes: N pairs, C = 3 grades.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.classifiers import fit_logistic_regression, softmax
from embeddings.relevance.grades import GRADES, HIGH, IRRELEVANT

FloatArray = npt.NDArray[np.float64]

#: Logarithms of what the probabilities of irrelevant and of high are multiplied by.
_OFFSETS = np.round(np.linspace(-1.0, 2.0, 31), 2)
_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class Decision:
    """Calibrated log odds = `slopes_CC` @ log p + `intercepts_C`; the grade is the largest + `offsets_C`."""

    slopes_CC: FloatArray
    intercepts_C: FloatArray
    offsets_C: FloatArray

    @classmethod
    def neutral(cls) -> "Decision":
        """Probabilities as they are, and the most probable grade."""
        classes = len(GRADES)
        return cls(np.eye(classes), np.zeros(classes), np.zeros(classes))

    @classmethod
    def learn(cls, raw_NC: FloatArray, grade_N: npt.NDArray[np.integer]) -> "Decision":
        """Calibrate on human grades of validation queries, then choose offsets of the best macro F1.

        Grades of which people gave none on these queries leave everything as it is.
        """
        if len(np.unique(grade_N)) < len(GRADES):
            return cls.neutral()
        model = fit_logistic_regression(_logs(raw_NC), grade_N)
        found = cls(
            model.coef_.astype(np.float64), model.intercept_.astype(np.float64), np.zeros(len(GRADES))
        )
        logs_NC = _logs(found.probabilities(raw_NC))
        best = -1.0
        for irrelevant, high in product(_OFFSETS, _OFFSETS):
            offsets_C = np.zeros(len(GRADES))
            offsets_C[IRRELEVANT], offsets_C[HIGH] = irrelevant, high
            score = macro_f1(grade_N, (logs_NC + offsets_C).argmax(axis=1))
            if score > best:
                best, chosen_C = score, offsets_C
        return cls(found.slopes_CC, found.intercepts_C, chosen_C)

    def probabilities(self, raw_NC: FloatArray) -> FloatArray:
        """Calibrated probabilities [N, C]."""
        return softmax(_logs(raw_NC) @ self.slopes_CC.T + self.intercepts_C)

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """One grade [N] for each row of calibrated probabilities."""
        return (_logs(probabilities_NC) + self.offsets_C).argmax(axis=1).astype(np.int8)


def _logs(probabilities_NC: FloatArray) -> FloatArray:
    return np.log(probabilities_NC.clip(_SMALLEST))
