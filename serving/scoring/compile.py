"""The request ranker as a program: compiled ahead of time for one thread, or traced, or as it is.

A folder holds `shape.json`, `weights.safetensors` (always: any program can be made of them again),
`backend.json`, and the program: `ranker.so` (AOTInductor) or `ranker.ts` (TorchScript).

AOTInductor's shared object is taken out of its package and loaded as it lies there. `aoti_load_package` would
unpack it for every worker into a folder that nobody deletes, and compile probes of the processor on the way.
One thread is compiled in: with two, a row out of range ends the process instead of the request.
"""

import json
import logging
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serving.scoring.ranker_scorer import Program, ScoringError, array_inputs
from serving.scoring.request_ranker import RankerShape, RequestRanker

BackendName = Literal["aotinductor", "torchscript", "eager"]
Backend = Literal["auto", "aotinductor", "torchscript", "eager"]

SHAPE, WEIGHTS, BACKEND = "shape.json", "weights.safetensors", "backend.json"
SHARED_OBJECT, SCRIPT = "ranker.so", "ranker.ts"
#: Largest difference in probability between a program and the module that it was made of.
TOLERANCE = 1e-5

#: What torch calls processors that have at least AVX2. Programs for them use no more than that (matrix
#: products choose their own instructions when they run), so that a package moves between servers.
_AVX2 = ("AVX2", "AVX512")
_AVX2_SETTINGS = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
Maker = Callable[[RequestRanker, list[Tensor], Path], None]
_LOG = logging.getLogger(__name__)


class CompileError(ValueError):
    """The backend that was asked for cannot be made here; the message says why."""


@dataclass(frozen=True)
class BackendChoice:
    """Which program there is, and why it is that one."""

    name: BackendName
    reason: str


@dataclass(frozen=True, eq=False)
class CompiledRanker:
    """An opened program; bind it to tables with `serving.scoring.ranker_scorer.RankerScorer`."""

    program: Program
    shape: RankerShape
    choice: BackendChoice


def compile_ranker(
    module: RequestRanker,
    example_inputs: Sequence[Tensor],
    out: Path,
    *,
    backend: Backend = "auto",
) -> BackendChoice:
    """Write the program and all that belongs to it into the folder `out`.

    "auto" takes AOTInductor if it can be made here and agrees with the module, else TorchScript, else the
    module as it is, and says in the reason what went wrong.

    Args:
        example_inputs: the tables as inputs, `serving.scoring.ranker_scorer.table_inputs`, for their types
            and for checks; what follows them is not read.

    Raises:
        CompileError: the backend that was asked for (not "auto") cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    module = module.eval()
    shape = module.shape
    (out / SHAPE).write_text(shape.model_dump_json(indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, out / WEIGHTS)
    tables = list(example_inputs[: len(shape.tables)])
    choice = _first_that_works(module, tables, out, backend=backend)
    described = {
        **asdict(choice),
        "machine": _machine(),
        "torch": torch.__version__,
        "tables": [str(table.dtype) for table in tables],
    }
    (out / BACKEND).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return choice


def load_compiled(folder: Path) -> CompiledRanker:
    """Open what `compile_ranker` wrote.

    A program of another torch or of a richer processor is not run: the module takes its place, and the choice
    says so.

    Raises:
        CompileError: a file is missing or unreadable.
    """
    try:
        shape = RankerShape.model_validate_json((folder / SHAPE).read_text(encoding="utf-8"))
        described = json.loads((folder / BACKEND).read_text(encoding="utf-8"))
        choice = BackendChoice(described["name"], described["reason"])
        obstacle = _obstacle(described) if choice.name == "aotinductor" else None
        if obstacle is not None:
            choice = BackendChoice("eager", f"{obstacle}; package the run again on this machine")
            _LOG.warning("the compiled ranker is not used: %s", choice.reason)
        return CompiledRanker(_open(folder, shape, choice.name, described["tables"]), shape, choice)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CompileError(f"{folder} holds no program that can be loaded: {error}") from error


def _first_that_works(
    module: RequestRanker, tables: list[Tensor], out: Path, *, backend: Backend
) -> BackendChoice:
    makers: dict[BackendName, Maker] = {"aotinductor": _compile, "torchscript": _trace, "eager": _nothing}
    wanted: list[BackendName] = list(makers) if backend == "auto" else [backend]
    failures: list[str] = []
    for name in wanted:
        try:
            makers[name](module, tables, out)
            program = _open(out, module.shape, name, [str(table.dtype) for table in tables])
            worst = _largest_difference(program, module, tables)
            if worst > TOLERANCE:
                raise CompileError(f"its scores differ by {worst:.2g} from the module's")
        except Exception as error:  # compilers fail in many ways; each is a reason to take the next backend
            failures.append(f"{name} failed: {_first_line(error)}")
            _LOG.warning("%s", failures[-1])
            continue
        reason = "; ".join(failures) or ("asked for" if backend != "auto" else _REASON[name])
        return BackendChoice(name, reason)
    raise CompileError(
        f"{failures[-1]}; ask for another backend, or for auto, which takes the first that works"
    )


_REASON: dict[str, str] = {
    "aotinductor": "the fastest that can be made here",
    "torchscript": "AOTInductor could not be made",
    "eager": "nothing else could be made",
}


def _compile(module: RequestRanker, tables: list[Tensor], out: Path) -> None:
    # Imported here: only packaging compiles, and a worker starts a second earlier without it.
    from torch._inductor import aoti_compile_and_package

    settings: dict[str, Any] = {"cpp.threads": 1}
    settings |= _AVX2_SETTINGS if _machine()["instructions"] == "AVX2" else {}
    with tempfile.TemporaryDirectory(dir=out, prefix=".compile-") as folder, _one_thread(), _quiet():
        exported = torch.export.export(
            module, tuple(traced_inputs(module.shape, tables)), dynamic_shapes=(dynamic_axes(module.shape),)
        )
        package = aoti_compile_and_package(
            exported, package_path=str(Path(folder) / "ranker.pt2"), inductor_configs=settings
        )
        with zipfile.ZipFile(package) as archive:
            names = [name for name in archive.namelist() if name.endswith(".so")]
            if len(names) != 1:
                raise CompileError(f"its package holds {len(names)} shared objects instead of one")
            (out / SHARED_OBJECT).write_bytes(archive.read(names[0]))


def _trace(module: RequestRanker, tables: list[Tensor], out: Path) -> None:
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(module, tuple(traced_inputs(module.shape, tables)), check_trace=False)
        torch.jit.freeze(traced).save(str(out / SCRIPT))


def _nothing(_module: RequestRanker, _tables: list[Tensor], _out: Path) -> None:
    """The weights are there already."""


class _SharedObject:
    """An AOTInductor program. It would read a table of another type as other numbers."""

    def __init__(self, path: Path, table_types: Sequence[str]) -> None:
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
        self._types = [getattr(torch, name.removeprefix("torch.")) for name in table_types]

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        found = [table.dtype for table in inputs[: len(self._types)]]
        if found != self._types:
            raise ScoringError(f"the program was compiled for tables of {self._types}, got {found}")
        return self._run(inputs)[0]


def _open(folder: Path, shape: RankerShape, name: BackendName, table_types: Sequence[str]) -> Program:
    if name == "aotinductor":
        return _SharedObject(folder / SHARED_OBJECT, table_types)
    module: Any
    if name == "torchscript":
        with _quiet():
            module = torch.jit.load(str(folder / SCRIPT))
    else:
        module = RequestRanker(shape)
        module.load_state_dict(load_file(folder / WEIGHTS), assign=True)
        module.eval().requires_grad_(False)
    return lambda inputs: module(*inputs)


def traced_inputs(shape: RankerShape, tables: list[Tensor]) -> list[Tensor]:
    """Small inputs with the types of `tables`. No axis is 1, which an export takes for a constant."""
    counts = {"R": 2, "N": 6, "H": 4}
    small = [table.new_zeros(8 + i, *table.shape[1:]) for i, table in enumerate(tables)]
    return small + _random_arrays(shape, small, counts, np.random.default_rng(0))


def dynamic_axes(shape: RankerShape) -> tuple[dict[int, Any], ...]:
    """For each input the axes that an export must leave open: table rows, R, N and H."""
    free = torch.export.Dim.DYNAMIC
    arrays = array_inputs(shape).values()
    return (
        *({0: free} for _ in shape.tables),
        *({axis: free for axis, name in enumerate(spec.axes) if isinstance(name, str)} for spec in arrays),
    )


def _largest_difference(program: Program, module: RequestRanker, tables: list[Tensor]) -> float:
    """Over requests of all awkward sizes: exported programs have failed at 1 candidate or no purchase."""
    worst = 0.0
    generator = np.random.default_rng(0)
    for requests, candidates, purchases in ((1, 1, 1), (1, 2, 1), (1, 1, 3), (2, 3, 2), (3, 40, 5)):
        counts = {"R": requests, "N": candidates, "H": purchases}
        inputs = [*tables, *_random_arrays(module.shape, tables, counts, generator)]
        with torch.inference_mode():
            difference = (program(inputs) - module(*inputs)).abs().max()
        worst = max(worst, float(difference) if torch.isfinite(difference) else float("inf"))
    return worst


def _random_arrays(
    shape: RankerShape, tables: Sequence[Tensor], counts: dict[str, int], generator: np.random.Generator
) -> list[Tensor]:
    rows = {name: len(table) for name, table in zip(shape.tables, tables, strict=True)}
    columns = {"request_sparse": shape.request_sparse, "candidate_sparse": shape.candidate_sparse}
    arrays: list[Any] = []
    for name, spec in array_inputs(shape).items():
        size = [counts[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        if spec.dtype is np.float32:
            array: Any = generator.normal(size=size)
        elif name in columns:
            array = np.empty(size)
            for position, column in enumerate(columns[name]):
                array[:, position] = generator.integers(0, rows[f"table:{column}"], size=size[0])
        else:
            array = generator.integers(0, counts["R"] if name == "request_of" else rows["vectors"], size=size)
        arrays.append(torch.from_numpy(array.astype(spec.dtype)))
    return arrays


def _machine() -> dict[str, str]:
    """Processor family, and the instructions that a program made here uses."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "processor": platform.machine(),
        "instructions": "AVX2" if capability in _AVX2 else capability,
    }


def _obstacle(described: dict[str, Any]) -> str | None:
    """Why a program that was compiled elsewhere must not run here."""
    if described["torch"] != torch.__version__:
        return f"it was compiled with torch {described['torch']}, and this is torch {torch.__version__}"
    here, there = _machine(), described["machine"]
    if here == there:
        return None
    return (
        f"it was compiled for {there['processor']} with {there['instructions']}, and this processor is "
        f"{here['processor']} with {here['instructions']}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Deprecations inside of torch are not the caller's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
