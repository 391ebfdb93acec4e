"""A ranker's forward pass cut so that what a change of one feature leaves alone is computed once.

Three things are shared between all the changes of a tile of rows: the pooled embeddings; the tower that the
feature does not feed; and the first products W x of the tower that it does, which are linear in x and need
only W (x' - x) over the changed columns. Rows whose inputs do not change keep their logit, bit for bit.

Shapes: B rows of a tile, P first products, H output width of a tower, T width of the head's first layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.crossnet import LowRankCrossNet

from experiments.importance.methods.tower_inputs import FeatureColumns, InputLayout, TowerInputs
from ranking.cross_network import CrossNetwork
from ranking.model import TwoTowerRanker
from ranking.towers import DashClipTower, DcnTower

#: Rows of one matrix product. A constant, because the last bits of a product depend on its number of rows:
#: results then depend neither on the batch size nor on how rows fall into batches.
TILE_ROWS = 1024


@dataclass(frozen=True)
class TileState:
    """Everything about a tile that changes of features share; the DashCLIP entries are None without it."""

    inputs: TowerInputs
    dcn_first_BP: Tensor
    dcn_head_BT: Tensor
    dashclip_first_BP: Tensor | None
    dashclip_head_BT: Tensor | None
    logit_B: Tensor


class SharedForward:
    """Logits of a ranker on tiles, and what they become when features are exchanged."""

    def __init__(self, layout: InputLayout) -> None:
        ranker, head = layout.ranker, layout.ranker.head
        assert isinstance(head, nn.Sequential)
        self.layout = layout
        self.dcn = _SplitDcn(ranker.dcn_tower)
        self.dashclip = _SplitDashClip(ranker.dashclip_tower) if isinstance(ranker, TwoTowerRanker) else None
        first = head[0]
        assert isinstance(first, nn.Linear)
        self.head_dcn_TH = first.weight[:, : ranker.dcn_tower.width]
        self.head_dashclip_TH = first.weight[:, ranker.dcn_tower.width :]
        self.head_bias_T = first.bias
        self.head_rest = head[1:]

    @torch.no_grad()
    def state(self, inputs: TowerInputs) -> TileState:
        """The tile as it is."""
        dcn_first_BP = functional.linear(inputs.dcn_BN, self.dcn.weight_PN, self.dcn.bias_P)
        dcn_head_BT = functional.linear(
            self.dcn.rest(inputs.dcn_BN, dcn_first_BP), self.head_dcn_TH, self.head_bias_T
        )
        if self.dashclip is None or inputs.dashclip_BM is None:
            return TileState(inputs, dcn_first_BP, dcn_head_BT, None, None, self._logits(dcn_head_BT))
        first_BP = functional.linear(inputs.dashclip_BM, self.dashclip.weight_PN, self.dashclip.bias_P)
        head_BT = functional.linear(self.dashclip.rest(inputs.dashclip_BM, first_BP), self.head_dashclip_TH)
        logit_B = self._logits(dcn_head_BT + head_BT)
        return TileState(inputs, dcn_first_BP, dcn_head_BT, first_BP, head_BT, logit_B)

    @torch.no_grad()
    def exchanged(self, state: TileState, other: TowerInputs, columns: FeatureColumns) -> Tensor:
        """Logits [B] when the feature in `columns` takes its values from `other`, all else being equal."""
        base = state.inputs
        dcn, dashclip = None, None
        changed_B = torch.zeros(len(state.logit_B), dtype=torch.bool)
        if len(columns.dcn_C):
            value_BC = self.layout.exchanged_dcn(base, other, columns)
            dcn = _Change.between(base.dcn_BN, value_BC, columns.dcn_C)
            changed_B |= dcn.rows()
        if len(columns.dashclip_C):
            assert base.dashclip_BM is not None
            value_BC = self.layout.exchanged(base, other, columns)
            dashclip = _Change.between(base.dashclip_BM, value_BC, columns.dashclip_C)
            changed_B |= dashclip.rows()
        if not changed_B.any():
            return state.logit_B

        # All rows again, not the changed ones alone: a product of fewer rows rounds differently.
        if dcn is None:
            head_BT = state.dcn_head_BT
        else:
            x_BN, first_BP = dcn.applied(base.dcn_BN, state.dcn_first_BP, self.dcn.weight_PN)
            hidden_BH = self.dcn.rest(x_BN, first_BP)
            head_BT = functional.linear(hidden_BH, self.head_dcn_TH, self.head_bias_T)
        if state.dashclip_head_BT is not None and dashclip is None:
            head_BT = head_BT + state.dashclip_head_BT
        elif dashclip is not None:
            assert self.dashclip is not None
            assert base.dashclip_BM is not None
            assert state.dashclip_first_BP is not None
            x_BM, first_BP = dashclip.applied(
                base.dashclip_BM, state.dashclip_first_BP, self.dashclip.weight_PN
            )
            hidden_BH = self.dashclip.rest(x_BM, first_BP)
            head_BT = head_BT + functional.linear(hidden_BH, self.head_dashclip_TH)
        return torch.where(changed_B, self._logits(head_BT), state.logit_B)

    def _logits(self, head_BT: Tensor) -> Tensor:
        return self.head_rest(head_BT).squeeze(1)


@dataclass(frozen=True)
class _Change:
    """New values of some columns of a tower's input, and by how much they differ."""

    column_C: Tensor
    value_BC: Tensor
    delta_BC: Tensor

    @classmethod
    def between(cls, x_BN: Tensor, value_BC: Tensor, column_C: Tensor) -> "_Change":
        return cls(column_C, value_BC, value_BC - x_BN.index_select(1, column_C))

    def rows(self) -> Tensor:
        """Which rows change at all [B]."""
        return (self.delta_BC != 0).any(dim=1)

    def applied(self, x_BN: Tensor, first_BP: Tensor, weight_PN: Tensor) -> tuple[Tensor, Tensor]:
        """The input [B, N] and its first products [B, P] after the change."""
        weight_CP = weight_PN.index_select(1, self.column_C).T
        changed_BN = x_BN.clone().index_copy_(1, self.column_C, self.value_BC)
        return changed_BN, torch.addmm(first_BP, self.delta_BC, weight_CP)


class _SplitDcn:
    """The DCN tower behind the first products of its cross layers and of its deep layers."""

    def __init__(self, tower: DcnTower) -> None:
        self.cross = tower.cross
        cross_weight_PN, cross_bias_P = _first_of_cross(tower.cross)
        self.cross_width = len(cross_bias_P)
        self.deep: nn.Sequential | None = None
        self.weight_PN, self.bias_P = cross_weight_PN, cross_bias_P
        if tower.is_parallel:
            assert isinstance(tower.deep, nn.Sequential)
            first = tower.deep[0]
            assert isinstance(first, nn.Linear)
            self.deep = nn.Sequential(*list(tower.deep)[1:])
            self.weight_PN = torch.cat([cross_weight_PN, first.weight]).detach()
            self.bias_P = torch.cat([cross_bias_P, first.bias]).detach()

    def rest(self, x_BN: Tensor, first_BP: Tensor) -> Tensor:
        """[B, H]."""
        crossed_BN = _cross_from(self.cross, x_BN, first_BP[:, : self.cross_width])
        if self.deep is None:
            return crossed_BN
        return torch.cat([crossed_BN, self.deep(first_BP[:, self.cross_width :])], dim=1)


class _SplitDashClip:
    """The DashCLIP tower behind the first product of its cross layers, or of its deep ones without them.

    Where it reads history tiers, the first product of their layers is the last part.
    """

    def __init__(self, tower: DashClipTower) -> None:
        cross, deep = tower.layers
        assert isinstance(cross, CrossNetwork)
        assert isinstance(deep, nn.Sequential)
        self.cross: CrossNetwork | None = cross if len(cross.layers) else None
        if self.cross is None:
            first = deep[0]
            assert isinstance(first, nn.Linear)
            self.weight_PN, self.bias_P = first.weight.detach(), first.bias.detach()
            self.deep = deep[1:]
        else:
            self.weight_PN, self.bias_P = _first_of_cross(cross)
            self.deep = deep
        self.first_widths, self.split = [len(self.bias_P)], tower.split
        self.tiers: nn.Sequential | None = None
        if tower.tier_layers is not None:
            first = tower.tier_layers[0]
            assert isinstance(first, nn.Linear)
            self.tiers = nn.Sequential(*list(tower.tier_layers)[1:])
            self.first_widths.append(first.out_features)
            self.weight_PN = torch.block_diag(self.weight_PN, first.weight.detach())
            self.bias_P = torch.cat([self.bias_P, first.bias.detach()])

    def rest(self, x_BN: Tensor, first_BP: Tensor) -> Tensor:
        """[B, H]."""
        x_BK, *_ = x_BN.split(self.split, dim=1)
        first_BK, *of_tiers = first_BP.split(self.first_widths, dim=1)
        crossed_BK = first_BK if self.cross is None else _cross_from(self.cross, x_BK, first_BK)
        hidden = [self.deep(crossed_BK)]
        if self.tiers is not None:
            hidden += [self.tiers(part_BK) for part_BK in of_tiers]
        return torch.cat(hidden, dim=1)


def _first_of_cross(cross: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the product that is linear in the input."""
    if isinstance(cross, LowRankCrossNet):
        weight_PN = cross.V_kernels[0]
        return weight_PN.detach(), torch.zeros(len(weight_PN))
    assert isinstance(cross, CrossNetwork)
    first = cross.layers[0]
    assert isinstance(first, nn.Linear)
    return first.weight.detach(), first.bias.detach()


def _cross_from(cross: nn.Module, x0_BN: Tensor, first_BP: Tensor) -> Tensor:
    """The cross layers' output, their first product being known."""
    x_BN = x0_BN
    if isinstance(cross, LowRankCrossNet):
        for i, (down, up, bias) in enumerate(zip(cross.V_kernels, cross.W_kernels, cross.bias, strict=True)):
            inner_BP = first_BP if i == 0 else functional.linear(x_BN, down)
            x_BN = x0_BN * (functional.linear(inner_BP, up) + bias) + x_BN
        return x_BN
    assert isinstance(cross, CrossNetwork)
    x_BN = torch.addcmul(x0_BN, x0_BN, first_BP)
    for layer in list(cross.layers)[1:]:
        x_BN = torch.addcmul(x_BN, x0_BN, layer(x_BN))
    return x_BN
