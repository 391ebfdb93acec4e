"""Which features say much the same, and whether they share credit.

A feature that another can stand in for loses little when it alone is permuted: its importance is hidden, not
absent. So correlated features are also permuted together, by one permutation.

Shapes: N rows, C columns of a feature, P principal components of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.model_features import Feature
from experiments.importance.result import CorrelatedPair
from experiments.importance.split_rows import SplitRows

Floats = NDArray[np.float64]

_SAMPLE_ROWS = 20_000
_COMPONENTS = 8
#: From here on a pair is called correlated.
CORRELATED = 0.7
#: The joint loss must exceed the sum of the single ones by this share of itself to speak of shared credit.
_SHARED = 0.1


@dataclass(frozen=True)
class CandidatePair:
    """Two features and their correlation."""

    a: Feature
    b: Feature
    correlation: float

    @property
    def name(self) -> str:
        """Of the two as a group."""
        return f"{self.a.name} + {self.b.name}"


def correlated_pairs(
    layout: InputLayout,
    rows: SplitRows,
    features: Sequence[Feature],
    importance: Mapping[str, float],
    *,
    count: int,
) -> list[CandidatePair]:
    """The `count` pairs whose overlap matters most: largest correlation times the larger importance.

    Two features correlate by the largest canonical correlation of their columns' 8 leading principal
    components: for two numbers the absolute Pearson correlation. Pairs of which one contains the other (an
    embedding and its similarity) are left out.

    Args:
        importance: of each feature alone, by key.
    """
    inputs = layout.inputs(rows, np.arange(0, len(rows), -(-len(rows) // _SAMPLE_ROWS)))
    bases: dict[str, Floats] = {}
    own: dict[str, set[int]] = {}
    for feature in features:
        columns = layout.columns(feature)
        parts = [inputs.dcn_BN[:, columns.dcn_C]]
        if inputs.dashclip_BM is not None and len(columns.dashclip_C):
            shown = columns.own_C if len(columns.own_C) else columns.dashclip_C
            parts.append(inputs.dashclip_BM[:, shown])
        own[feature.key] = set(columns.dashclip_C.tolist())
        bases[feature.key] = _basis(torch.cat(parts, dim=1).detach().double().numpy())
    found = []
    for a, b in combinations(features, 2):
        if own[a.key] & own[b.key]:
            continue
        correlation = canonical_correlation(bases[a.key], bases[b.key])
        if correlation >= CORRELATED:
            found.append(CandidatePair(a, b, correlation))

    def weight(pair: CandidatePair) -> float:
        return pair.correlation * max(importance[pair.a.key], importance[pair.b.key], 0.0)

    return sorted(found, key=lambda pair: (-weight(pair), pair.name))[:count]


def _basis(values_NC: Floats) -> Floats:
    """Orthonormal scores of the leading principal components [N, P]; no column where nothing varies."""
    centred_NC = values_NC - values_NC.mean(axis=0)
    left_NP, size_P, _ = np.linalg.svd(centred_NC, full_matrices=False)
    kept_P = size_P > 1e-6 * max(float(size_P.max(initial=0.0)), 1e-12)
    basis_NP: Floats = left_NP[:, kept_P][:, :_COMPONENTS]
    return basis_NP if size_P.max(initial=0.0) > 1e-9 else basis_NP[:, :0]


def canonical_correlation(a_NP: Floats, b_NP: Floats) -> float:
    """Largest canonical correlation of two orthonormal bases; 0 if one is empty."""
    if not a_NP.shape[1] or not b_NP.shape[1]:
        return 0.0
    return float(min(1.0, np.linalg.svd(a_NP.T @ b_NP, compute_uv=False)[0]))


def described(pair: CandidatePair, *, single_a: float, single_b: float, joint: float) -> CorrelatedPair:
    """The pair with its losses and what they mean."""
    a, b = pair.a.name, pair.b.name
    alone = max(single_a, 0.0) + max(single_b, 0.0)
    lead = (
        f"{a} and {b} correlate ({pair.correlation:.2f}); AUC falls by {single_a:.4f} and {single_b:.4f} "
        f"without the one or the other, by {joint:.4f} without both"
    )
    if joint > alone + _SHARED * abs(joint) and joint > 0:
        sentence = f"{lead}: each stands in for the other, so their single importances are too low."
    elif joint < alone - _SHARED * abs(joint):
        sentence = f"{lead}: less than the sum, since the model uses them together."
    else:
        sentence = f"{lead}: about the sum, so they do not hide each other."
    return CorrelatedPair(
        a=a,
        b=b,
        correlation=pair.correlation,
        single_a=single_a,
        single_b=single_b,
        joint=joint,
        sentence=sentence,
    )
