"""Integrated Gradients of the logit, by Captum, over what the towers read: pooled embeddings, dense inputs.

Integer ids have no gradients, so attribution starts behind the lookups; Captum takes tensors, not bags. The
baseline is that of ablation: what the ranker is given when every feature is missing. A feature's attribution
is the sum over its columns; an embedding's includes its indicator and its cosines, as everywhere here. Signed
means over rows would cancel, so a feature's importance is the mean absolute attribution of a row.

Shapes: N rows, B rows of a tile, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from experiments.importance.methods.tower_inputs import FeatureColumns, InputLayout, TowerInputs
from experiments.importance.model_features import Feature
from experiments.importance.slices import Mask
from experiments.importance.split_rows import SplitRows
from features.progress import Progress, silent
from ranking.model import TwoTowerRanker

#: Gauss-Legendre nodes between baseline and row. Their error is reported: ReLUs bend the path, so it falls
#: slowly (0.006 logits for 16 nodes, 0.004 for 24, 0.002 for 50, on the mean row of the demo).
STEPS = 24
_TILE_ROWS = 128


@dataclass(frozen=True)
class Attributed:
    """Mean absolute attribution by feature key and slice, in logits, and how exact the attributions are.

    Attributes:
        delta_mean, delta_largest: absolute difference between the sum of a row's attributions and its logit
            minus that of the baseline.
    """

    values: dict[str, dict[str, float]]
    delta_mean: float
    delta_largest: float


def integrated_gradients(
    layout: InputLayout,
    rows: SplitRows,
    features: Sequence[Feature],
    *,
    missing_columns: Sequence[int],
    masks: Mapping[str, Mask],
    steps: int = STEPS,
    progress: Progress = silent,
) -> Attributed:
    """Attribute the logit of every row, tile by tile."""
    size_FN = np.empty((len(features), len(rows)), np.float32)
    delta_N = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _TILE_ROWS):
        row_B = np.arange(start, min(start + _TILE_ROWS, len(rows)))
        with torch.no_grad():
            inputs = layout.inputs(rows, row_B)
        attribution_BF, delta_B = row_attributions(
            layout, inputs, features, missing_columns=missing_columns, steps=steps
        )
        size_FN[:, row_B] = np.abs(attribution_BF).T
        delta_N[row_B] = np.abs(delta_B)
        progress("integrated gradients", int(row_B[-1]) + 1, len(rows))
    return Attributed(
        values={
            feature.key: {
                name: float(size_FN[f, mask].mean(dtype=np.float64)) for name, mask in masks.items()
            }
            for f, feature in enumerate(features)
        },
        delta_mean=float(delta_N.mean(dtype=np.float64)),
        delta_largest=float(delta_N.max()),
    )


def _logits_of_inputs(layout: InputLayout) -> Callable[..., Tensor]:
    ranker = layout.ranker

    def logits(dcn_BN: Tensor, dashclip_BM: Tensor | None = None) -> Tensor:
        hidden = [ranker.dcn_tower.layers(dcn_BN)]
        if isinstance(ranker, TwoTowerRanker):
            assert dashclip_BM is not None
            hidden.append(ranker.dashclip_tower.hidden(dashclip_BM))
        return ranker.head(torch.cat(hidden, dim=1)).squeeze(1)

    return logits


def _tensors(inputs: TowerInputs) -> tuple[Tensor, ...]:
    """Captum wants leaves; padding and missing sides are left as they are."""
    towers = (inputs.dcn_BN, inputs.dashclip_BM)
    return tuple(tensor.detach() for tensor in towers if tensor is not None)


def _feature_attribution(attributions: tuple[Tensor, ...], columns: FeatureColumns) -> Tensor:
    """Signed attribution [B] of a feature."""
    total_B = attributions[0][:, columns.dcn_C].sum(dim=1)
    if len(columns.dashclip_C):
        total_B = total_B + attributions[1][:, columns.dashclip_C].sum(dim=1)
    return total_B.detach()


def row_attributions(
    layout: InputLayout,
    inputs: TowerInputs,
    features: Sequence[Feature],
    *,
    missing_columns: Sequence[int],
    steps: int = STEPS,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Signed attributions [B, F] of some rows, and the convergence delta [B]."""
    with torch.no_grad():
        baseline = layout.missing(1, missing_columns=missing_columns)
    attributions, delta_B = IntegratedGradients(_logits_of_inputs(layout)).attribute(
        _tensors(inputs), baselines=_tensors(baseline), n_steps=steps, return_convergence_delta=True
    )
    columns = [layout.columns(feature) for feature in features]
    attribution_BF = torch.stack([_feature_attribution(attributions, c) for c in columns], dim=1)
    return attribution_BF.numpy(), delta_B.detach().numpy()
