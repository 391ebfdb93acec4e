"""Which difference in AUC a test could show at all: with few clicks, only a large one.

A test of 95 % confidence finds a difference of `z(0.975) + z(0.8)` = 2.80 standard errors in four of five
samples (80 % power); smaller ones it mostly misses, and what it finds of them is exaggerated.

- Before any training: the variance of an AUC by J. A. Hanley and B. J. McNeil, "The meaning and use of the
  area under a receiver operating characteristic (ROC) curve", Radiology 143, 1982. It takes impressions for
  independent, which those of one user are not, so the difference that could be seen is rather larger.
- After it: the interval over users of the difference itself, which knows of both.
"""

import math

from scipy import stats

from experiments.statistics.intervals import Limits

CONFIDENCE, POWER = 0.95, 0.8
#: What is assumed before training: rankers of this AUC, whose AUCs on other samples move together so closely.
ASSUMED_AUC, ASSUMED_CORRELATION = 0.7, 0.9

_AT_CONFIDENCE = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
#: Standard errors that make a difference which is found with that power.
STANDARD_ERRORS = _AT_CONFIDENCE + float(stats.norm.ppf(POWER))


def auc_variance(auc: float, *, clicked: int, others: int) -> float:
    """Variance of the AUC on a sample of that many impressions, by Hanley and McNeil.

    One of each gives auc (1 - auc); it falls with the rarer of the two, clicks as a rule.

    Raises:
        ValueError: a class is empty, or the AUC lies outside of 0 to 1.
    """
    if clicked < 1 or others < 1 or not 0 <= auc <= 1:
        raise ValueError(
            f"an AUC from 0 to 1 and impressions of both kinds are needed, got {auc:g}, {clicked:,} clicked "
            f"and {others:,} others"
        )
    both_clicked, both_others = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return (
        auc * (1 - auc) + (clicked - 1) * (both_clicked - auc**2) + (others - 1) * (both_others - auc**2)
    ) / (clicked * others)


def detectable_difference(
    clicked: int,
    rows: int,
    *,
    auc: float = ASSUMED_AUC,
    correlation: float = ASSUMED_CORRELATION,
) -> float | None:
    """The difference in AUC of two rankers that a test on these rows finds in four of five samples.

    Args:
        correlation: of both AUCs over samples; the closer to 1, the smaller a difference can be seen.

    Returns:
        None if all rows or none are clicked: there is no AUC.
    """
    if not 0 < clicked < rows:
        return None
    variance = 2 * (1 - correlation) * auc_variance(auc, clicked=clicked, others=rows - clicked)
    return STANDARD_ERRORS * math.sqrt(variance)


def detectable_by(interval: Limits) -> float | None:
    """The same from the 95 % interval of a measured difference: 1.43 times half its width; None without one.

    An interval from -0.01 to 0.03 gives 0.0286.
    """
    if interval.low is None or interval.high is None:
        return None
    return STANDARD_ERRORS / _AT_CONFIDENCE * (interval.high - interval.low) / 2


def expected_sentence(clicked: int, rows: int) -> str:
    """What a test on these rows may show, before anything was trained."""
    difference = detectable_difference(clicked, rows)
    if difference is None:
        return f"{clicked:,} of {rows:,} test impressions were clicked: no AUC, so nothing can be compared"
    return (
        f"{clicked:,} of {rows:,} test impressions were clicked: two rankers are surely told apart in four "
        f"of five such tests if their AUCs differ by about {difference:.4f} or more (AUCs near "
        f"{ASSUMED_AUC:g} that move together, correlation {ASSUMED_CORRELATION:g}); smaller differences are "
        "mostly missed"
    )
