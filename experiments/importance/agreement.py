"""Whether methods, and seeds, rank features alike: rank correlations with intervals, and a sentence.

The interval is over features (a bootstrap of which features there are to rank). It leaves out the noise of
each importance; the correlation between seeds shows that.

Shapes: R runs, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.importance.result import METHOD_TITLES, Agreement, Method, MethodAgreement, SeedAgreement
from experiments.statistics.intervals import percentile_interval

Floats = NDArray[np.float64]

_RESAMPLES = 500
_TOP = 10
#: Spearman's correlation from which rankings are called alike.
_ALIKE = 0.7


def spearman(a_F: Floats, b_F: Floats) -> float:
    """Correlation of ranks, equal values sharing theirs; 0 where one side ranks nothing."""
    a_F, b_F = _ranks(a_F), _ranks(b_F)
    size = float(np.sqrt((a_F @ a_F) * (b_F @ b_F)))
    return float(a_F @ b_F) / size if size else 0.0


def _ranks(values_F: Floats) -> Floats:
    """Ranks around zero, equal values sharing their mean rank; many times faster than SciPy's."""
    _, place_F, count = np.unique(values_F, return_inverse=True, return_counts=True)
    ranks_F: Floats = (np.cumsum(count) - (count - 1) / 2)[place_F]
    return ranks_F - (len(values_F) + 1) / 2


def agreement(names: Sequence[str], values_RF: Mapping[Method, Floats]) -> Agreement:
    """Agreement of the methods given, and of the runs of each.

    Args:
        names: of the features.
        values_RF: importance by method, run and feature; positive is useful.
    """
    means = {method: matrix_RF.mean(axis=0) for method, matrix_RF in values_RF.items()}
    methods = [_of_methods(a, b, means[a], means[b]) for a, b in combinations(means, 2)]
    seeds: dict[Method, SeedAgreement] = {
        method: _of_seeds(matrix_RF) for method, matrix_RF in values_RF.items() if len(matrix_RF) > 1
    }
    return Agreement(methods=tuple(methods), seeds=seeds, sentence=_sentence(names, means, methods, seeds))


def _of_methods(a: Method, b: Method, a_F: Floats, b_F: Floats) -> MethodAgreement:
    value = spearman(a_F, b_F)
    interval = percentile_interval(
        value, _bootstrap(len(a_F), lambda chosen: spearman(a_F[chosen], b_F[chosen]))
    )
    return MethodAgreement(
        a=a,
        b=b,
        kendall=float(np.nan_to_num(stats.kendalltau(a_F, b_F).statistic)),
        spearman=value,
        low=interval.low,
        high=interval.high,
        top_10_shared=len(set(_top(a_F)) & set(_top(b_F))),
    )


def _of_seeds(matrix_RF: Floats) -> SeedAgreement:
    def mean_of_pairs(of_RF: Floats) -> float:
        return float(np.mean([spearman(a_F, b_F) for a_F, b_F in combinations(of_RF, 2)]))

    value = mean_of_pairs(matrix_RF)
    interval = percentile_interval(
        value,
        _bootstrap(matrix_RF.shape[1], lambda chosen: mean_of_pairs(matrix_RF[:, chosen])),
    )
    return SeedAgreement(spearman=value, low=interval.low, high=interval.high)


def _bootstrap(features: int, statistic: Callable[[NDArray[np.int64]], float]) -> list[float]:
    if features < 4:  # too few to draw from
        return []
    rng = np.random.default_rng(0)
    return [statistic(rng.integers(0, features, features)) for _ in range(_RESAMPLES)]


def _top(values_F: Floats) -> list[int]:
    return [int(f) for f in np.argsort(-values_F, kind="stable")[:_TOP]]


def _sentence(
    names: Sequence[str],
    means: Mapping[Method, Floats],
    methods: Sequence[MethodAgreement],
    seeds: Mapping[Method, SeedAgreement],
) -> str:
    parts: list[str] = []
    alike = [pair for pair in methods if pair.spearman >= _ALIKE]
    apart = [pair for pair in methods if pair.spearman < _ALIKE]
    if alike and not apart:
        low, high = min(p.spearman for p in alike), max(p.spearman for p in alike)
        span = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        shared = min(pair.top_10_shared or 0 for pair in alike)
        parts.append(
            f"{'The methods rank' if len(methods) > 1 else 'Both methods rank'} the {len(names)} features "
            f"alike: Spearman {span}, and any two share at least {shared} of their "
            f"{min(_TOP, len(names))} leading features."
        )
    parts += [
        f"{METHOD_TITLES[pair.a]} and {METHOD_TITLES[pair.b].lower()} disagree "
        f"(Spearman {pair.spearman:.2f}); they share {pair.top_10_shared} of their "
        f"{min(_TOP, len(names))} leading features."
        for pair in apart
    ]
    widest = _widest(names, means)
    if widest:
        parts.append(widest)
    parts += [
        f"Seeds {'agree' if found.spearman >= _ALIKE else 'disagree'} by {METHOD_TITLES[method].lower()} "
        f"(Spearman {found.spearman:.2f})."
        for method, found in seeds.items()
    ]
    return " ".join(parts)


def _widest(names: Sequence[str], means: Mapping[Method, Floats]) -> str | None:
    """The leading feature that two methods place most differently."""
    places = {method: np.argsort(np.argsort(-values_F, kind="stable")) for method, values_F in means.items()}
    leading = {f for values_F in means.values() for f in _top(values_F)}
    found = [
        (abs(int(places[a][f]) - int(places[b][f])), f, a, b)
        for a, b in combinations(places, 2)
        for f in leading
    ]
    if not found or max(found)[0] < _TOP // 2:
        return None
    _, f, a, b = max(found, key=lambda entry: (entry[0], -entry[1]))
    return (
        f"They differ most about {names[f]!r}: number {places[a][f] + 1} by {METHOD_TITLES[a].lower()}, "
        f"number {places[b][f] + 1} by {METHOD_TITLES[b].lower()}."
    )
