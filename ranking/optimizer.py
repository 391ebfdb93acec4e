"""Adam for the dense layers, row-wise Adagrad fused into the tables' backward pass, one schedule for both."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizer

from features.artifacts import StrictModel
from ranking.embedding_collection import PooledEmbeddings
from ranking.model import Ranker


class OptimizerConfig(StrictModel):
    """Learning rates rise linearly for `warmup_steps`, then fall linearly to `final_share` of themselves."""

    #: Peak rate of Adam, for dense layers.
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    #: Peak rate of row-wise Adagrad, for tables of ids.
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    #: Of the dense layers.
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    #: Steps in which both rates rise.
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    #: 1 keeps the rates constant, which learns more from one short pass; 0 ends on a well-averaged model.
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class RankerOptimizer:
    """Both optimizers of a ranker behind `step`."""

    def __init__(self, ranker: Ranker, config: OptimizerConfig, *, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps
        self._fused = [_optimizer_of(collection) for collection in trained_collections(ranker)]
        self._named = dict(dense_parameters(ranker))
        self._dense = torch.optim.AdamW(
            self._named.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def factor_of(self, step: int) -> float:
        """What the configured rates are multiplied by for the update number `step` (from 0).

        While warming up, (step + 1) / warmup_steps.
        """
        warmup = self.config.warmup_steps
        left = max(0.0, (self.total_steps - step) / max(1, self.total_steps - warmup))
        falling = self.config.final_share + (1 - self.config.final_share) * left
        return min(1.0, (step + 1) / max(1, warmup), falling)

    def set_learning_rates(self, step: int) -> float:
        """Set both for the update number `step`; the factor applied to the configured ones."""
        factor = self.factor_of(step)
        for group in self._dense.param_groups:
            group["lr"] = self.config.learning_rate * factor
        for fused in self._fused:
            for group in fused.param_groups:
                group["lr"] = self.config.embedding_learning_rate * factor
            fused.step()  # only hands the rate to fbgemm; the update itself happens in the backward pass
        return factor

    def update(self, loss: Tensor) -> None:
        """Backward pass (which updates the tables) and one Adam step."""
        self.zero_grad()
        loss.backward()
        self.step()

    def zero_grad(self) -> None:
        """Forget the gradients of dense layers."""
        self._dense.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One Adam step with the gradients of dense layers."""
        self._dense.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Every optimizer state under a flat name; `load_state_tensors` takes it back."""
        names = {id(parameter): name for name, parameter in self._named.items()}
        tensors = {}
        for parameter, state in self._dense.state.items():
            for key, value in state.items():
                tensors[f"dense/{names[id(parameter)]}/{key}"] = value
        for i, fused in enumerate(self._fused):
            for table, state in fused.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"fused/{i}/{table}/{key}"] = value
        return tensors

    def begin(self) -> None:
        """Make Adam's state, zeros, which it would make in its first step: a state is read into it."""
        for parameter in self._named.values():
            if not self._dense.state[parameter]:
                self._dense.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore in place. Weights are read first: they tell whether dense layers are the same ones.

        Raises:
            ValueError: `tensors` come from a ranker with other tables.
        """
        for name, parameter in self._named.items():
            prefix = f"dense/{name}/"
            state = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            if state:
                # the fused kernel keeps its step counter beside the parameter, wherever that is
                self._dense.state[parameter] = {
                    key: value.to(parameter.device) for key, value in state.items()
                }
        for i, fused in enumerate(self._fused):
            for table, state in fused.state_dict()["state"].items():
                for key, value in state.items():
                    saved = tensors.get(f"fused/{i}/{table}/{key}")
                    if saved is None or saved.shape != value.shape:
                        raise ValueError(
                            f"the checkpoint has no optimizer state of shape {tuple(value.shape)} for table "
                            f"{table!r}; it was written by a run with other features or another model"
                        )
                    value.copy_(saved)


def trained_collections(ranker: Ranker) -> list[nn.Module]:
    """Collections whose tables are trained, by optimizers of their own inside the backward pass."""
    return [
        module.collection
        for module in ranker.modules()
        if isinstance(module, PooledEmbeddings) and not module.frozen
    ]


def dense_parameters(ranker: Ranker) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that Adam trains: all but the tables."""
    tables = {
        id(parameter)
        for module in ranker.modules()
        if isinstance(module, PooledEmbeddings)
        for parameter in module.parameters()
    }
    for name, parameter in ranker.named_parameters():
        if parameter.requires_grad and id(parameter) not in tables:
            yield name, parameter


def _optimizer_of(collection: Any) -> KeyedOptimizer:
    """The optimizer of a collection's tables, whether one process holds them or several ranks do."""
    if isinstance(collection, FusedEmbeddingBagCollection):
        return collection.fused_optimizer()
    return collection.fused_optimizer
