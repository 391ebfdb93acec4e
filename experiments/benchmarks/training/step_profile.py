"""Where the processor time of a training step goes, how many bytes it moves, and how near its limit it is.

Every operator that a step calls is timed on the thread's processor clock, which other load touches least; the
profiler of torch has wall time alone. Bytes are those of the tensors that an operator reads and writes, as if
none stayed in a cache.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.benchmarks.training.roofline import DcnShape

Kind = Literal["products", "element_wise", "copies", "look_up", "update", "loader", "rest"]
#: What a step consists of, in the order of tables; "rest" is Python, autograd and the launch of operators.
KINDS: dict[Kind, str] = {
    "products": "matrix products",
    "element_wise": "element-wise, sums",
    "copies": "copies, cat, casts",
    "look_up": "look-up in tables",
    "update": "update of tables and weights",
    "loader": "loader",
    "rest": "Python, autograd",
}
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "addmv", "mv", "_linear_pointwise"}
_COPIES = {"copy_", "_to_copy", "clone", "cat", "stack", "zero_", "fill_", "zeros", "zeros_like", "new_zeros"}
_COPIES |= {"ones", "full", "slice_backward", "constant_pad_nd"}
_UPDATES = {"_fused_adamw_", "_foreach_add_"}
#: Operators that are kept of a profile.
TOP_OPERATORS = 10


@dataclass
class OperatorCost:
    """What all calls of one operator cost."""

    kind: Kind
    calls: int = 0
    cpu_s: float = 0.0
    bytes: int = 0


def kind_of(name: str) -> Kind:
    """The part of a step that an operator belongs to, from its name without overload.

    >>> kind_of("aten::addmm"), kind_of("fbgemm::split_embedding_codegen_forward_cpu")
    ('products', 'look_up')
    """
    space, _, operator = name.partition("::")
    if space == "fbgemm":
        return "update" if "backward" in operator else "look_up"
    if operator.startswith("_embedding_bag"):
        return "look_up"
    if operator in _PRODUCTS:
        return "products"
    if operator in _UPDATES:
        return "update"
    return "copies" if operator in _COPIES else "element_wise"


def moved_bytes(inputs: Iterable[Any], results: Iterable[Any]) -> int:
    """Bytes that an operator reads and writes: each tensor once, one that is written in place twice.

    A result that shares its memory with an input and is not that input is a view: nothing moves. What is
    expanded counts what is stored.
    """
    read = [value for value in inputs if isinstance(value, Tensor)]
    written = [value for value in results if isinstance(value, Tensor)]
    stored = {value.untyped_storage().data_ptr() for value in read}
    objects = {id(value) for value in read}
    if written and all(id(v) not in objects and v.untyped_storage().data_ptr() in stored for v in written):
        return 0
    return sum(map(_bytes, read)) + sum(map(_bytes, written))


def _bytes(tensor: Tensor) -> int:
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= size if stride or size == 0 else 1
    return distinct * tensor.element_size()


class OperatorClock(TorchDispatchMode):
    """While it is entered, charges every operator with its processor time and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, OperatorCost] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        started = time.thread_time()
        result = func(*args, **(kwargs or {}))
        elapsed = time.thread_time() - started
        name = func.name().partition(".")[0]
        cost = self.costs.setdefault(name, OperatorCost(kind_of(name)))
        cost.calls += 1
        cost.cpu_s += elapsed
        if cost.kind != "look_up" and not name.startswith("fbgemm::"):  # these name whole tables
            cost.bytes += moved_bytes(tree_leaves((args, kwargs)), tree_leaves(result))
        return result


def profile_steps(take: Callable[[], object], *, steps: int) -> dict[str, Any]:
    """Costs a step, as JSON, of `take`, which takes `steps` steps: of each kind, and of the operators."""
    clock = OperatorClock()
    with clock:
        take()
    kinds = {
        kind: {
            "ms": 1e3 * sum(cost.cpu_s for cost in clock.costs.values() if cost.kind == kind) / steps,
            "mb": 1e-6 * sum(cost.bytes for cost in clock.costs.values() if cost.kind == kind) / steps,
        }
        for kind in KINDS
    }
    top = sorted(clock.costs, key=lambda name: -clock.costs[name].cpu_s)[:TOP_OPERATORS]
    return {
        "kinds": kinds,
        "operators": [
            {
                "name": name,
                "kind": clock.costs[name].kind,
                "calls": clock.costs[name].calls / steps,
                "ms": 1e3 * clock.costs[name].cpu_s / steps,
                "mb": 1e-6 * clock.costs[name].bytes / steps,
            }
            for name in top
        ],
    }


def step_shares(
    profiles: Sequence[dict[str, Any]],
    *,
    rows: int,
    step_ms: float,
    loader_ms: float,
    shape: DcnShape,
    gflops: float,
    copy_gb_per_s: float,
) -> dict[str, Any]:
    """The profile of several runs beside what the machine could do: products at their peak, then bytes.

    The memory that matrix products themselves move is not counted: it moves while they multiply.

    Args:
        profiles: what `profile_steps` gave, of which medians are taken.
        rows: of a step.
        step_ms: processor time of a step that nobody profiles; what no operator took of it is "rest".
        loader_ms: of reading the rows of a step.
    """
    kinds = {
        kind: {name: statistics.median(p["kinds"][kind][name] for p in profiles) for name in ("ms", "mb")}
        for kind in KINDS
    }
    operators_ms = sum(kind["ms"] for kind in kinds.values())
    kinds["loader"]["ms"] = loader_ms
    kinds["rest"]["ms"] = max(0.0, step_ms - operators_ms)
    # of tables, the rows that are read, written and read again; fbgemm's operators name whole tables
    kinds["look_up"]["mb"] += 1e-6 * rows * shape.looked_up_bytes_per_row
    kinds["update"]["mb"] += 1e-6 * rows * (shape.embedding_bytes_per_row - shape.looked_up_bytes_per_row)
    total_ms = sum(kind["ms"] for kind in kinds.values())
    products_ms = 1e-6 * rows * shape.flop_per_row / gflops
    moved_mb = sum(kind["mb"] for name, kind in kinds.items() if name != "products")
    memory_ms = moved_mb / copy_gb_per_s
    return {
        "rows": rows,
        "ms": total_ms,
        "kinds": {name: {**kind, "share": kind["ms"] / total_ms} for name, kind in kinds.items()},
        "limit_ms": {"products": products_ms, "memory": memory_ms},
        "share_of_limit": (products_ms + memory_ms) / total_ms,
        "operators": profiles[0]["operators"],
    }
