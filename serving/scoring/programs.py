"""The request ranker as a program, opened: compiled ahead of time for one thread, or traced, or as it is.

A folder holds `shape.json`, `weights.safetensors` (always: any program can be made of them again),
`backend.json`, and the program: `ranker.so` (AOTInductor) or `ranker.ts` (TorchScript). Beside `ranker.so`
may lie `ranker_bfloat16.so`: it runs where the processor has such numbers, the other one elsewhere.
`serving.scoring.compile` writes it all; a worker does not import that.

AOTInductor's shared object is taken out of its package and loaded as it lies there. `aoti_load_package` would
unpack it for every worker into a folder that nobody deletes, and compile probes of the processor on the way.
One thread is compiled in: with two, a row out of range ends the process instead of the request.
"""

import json
import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from serving.scoring.arithmetic import Arithmetic, has_bfloat16, rows_run
from serving.scoring.ranker_scorer import Program, ScoringError, array_inputs
from serving.scoring.request_ranker import RankerShape, RequestRanker

BackendName = Literal["aotinductor", "torchscript", "eager"]

SHAPE, WEIGHTS, BACKEND = "shape.json", "weights.safetensors", "backend.json"
SHARED_OBJECT, BFLOAT16_OBJECT, SCRIPT = "ranker.so", "ranker_bfloat16.so", "ranker.ts"
#: By arithmetic; that of float32 has one name, whoever multiplies.
FILES: dict[Arithmetic, str] = {
    "torch": SHARED_OBJECT,
    "onednn": SHARED_OBJECT,
    "bfloat16": BFLOAT16_OBJECT,
}


#: What torch calls processors that have at least AVX2. Programs for them use no more than that (matrix
#: products choose their own instructions when they run), so that a package moves between servers.
_AVX2 = ("AVX2", "AVX512")
_LOG = logging.getLogger(__name__)


class CompileError(ValueError):
    """The backend that was asked for cannot be made here; the message says why."""


@dataclass(frozen=True)
class MadeProgram:
    """A shared object.

    Attributes:
        p50_ms: for 100 candidates, on the machine that made it.
        difference: the largest of a probability from the module's.
    """

    arithmetic: Arithmetic
    p50_ms: float
    difference: float


@dataclass(frozen=True)
class BackendChoice:
    """Which program there is, and why it is that one.

    Attributes:
        programs: of AOTInductor, the one that is run first.
    """

    name: BackendName
    reason: str
    programs: tuple[MadeProgram, ...] = ()

    @property
    def arithmetic(self) -> Arithmetic:
        """Of the program that is run."""
        return self.programs[0].arithmetic if self.programs else "torch"


@dataclass(frozen=True, eq=False)
class CompiledRanker:
    """An opened program; bind it to tables with `serving.scoring.ranker_scorer.RankerScorer`."""

    program: Program
    shape: RankerShape
    choice: BackendChoice


def load_compiled(folder: Path) -> CompiledRanker:
    """Open what `compile_ranker` wrote.

    A program of another torch or of a richer processor is not run: the module takes its place, and the choice
    says so. On a processor without bfloat16 the float32 program takes the place of a bfloat16 one.

    Raises:
        CompileError: a file is missing or unreadable.
    """
    try:
        shape = RankerShape.model_validate_json((folder / SHAPE).read_text(encoding="utf-8"))
        described = json.loads((folder / BACKEND).read_text(encoding="utf-8"))
        programs = tuple(MadeProgram(**made) for made in described.get("programs", ()))
        choice = BackendChoice(described["name"], described["reason"], programs)
        obstacle = _obstacle(described) if choice.name == "aotinductor" else None
        if obstacle is not None:
            choice = BackendChoice("eager", f"{obstacle}; package the run again on this machine")
            _LOG.warning("the compiled ranker is not used: %s", choice.reason)
        elif choice.arithmetic == "bfloat16" and not has_bfloat16():
            why = "float32, since this processor has no bfloat16, in which it would be faster"
            choice = BackendChoice(choice.name, why, programs[1:])
            _LOG.info("the ranker computes in %s", why)
        return CompiledRanker(open_program(folder, shape, choice, described["tables"]), shape, choice)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CompileError(f"{folder} holds no program that can be loaded: {error}") from error


class SharedObject:
    """An AOTInductor program. It would read a table of another type as other numbers."""

    def __init__(
        self, path: Path, shape: RankerShape, table_types: Sequence[str], arithmetic: Arithmetic
    ) -> None:
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
        self._types = [getattr(torch, name.removeprefix("torch.")) for name in table_types]
        axes = enumerate((spec.axes[0] for spec in array_inputs(shape).values()), start=len(shape.tables))
        #: Inputs with a row for each candidate, if these have to be filled up.
        self._filled = [] if arithmetic == "torch" else [place for place, axis in axes if axis == "N"]

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        found = [table.dtype for table in inputs[: len(self._types)]]
        if found != self._types:
            raise ScoringError(f"the program was compiled for tables of {self._types}, got {found}")
        count = len(inputs[-1])
        if not self._filled or (rows := rows_run(count)) == count:
            return self._run(inputs)[0]
        inputs = list(inputs)
        for place in self._filled:
            inputs[place] = _filled(inputs[place], rows)
        return self._run(inputs)[0][:count]


def _filled(array: Tensor, rows: int) -> Tensor:
    """Zeros behind the rows of an array: row 0 of every table and the first request, which always exist."""
    full = array.new_zeros(rows, *array.shape[1:])
    full[: len(array)] = array
    return full


def open_program(
    folder: Path, shape: RankerShape, choice: BackendChoice, table_types: Sequence[str]
) -> Program:
    if choice.name == "aotinductor":
        return SharedObject(folder / FILES[choice.arithmetic], shape, table_types, choice.arithmetic)
    if choice.name == "torchscript":
        with quiet():
            script: Any = torch.jit.load(str(folder / SCRIPT))
        return lambda inputs: script(*inputs)
    return called(open_module(folder, shape))


def open_module(folder: Path, shape: RankerShape) -> RequestRanker:
    """The ranker as it is, in evaluation mode, with the weights that lie in the folder."""
    module = RequestRanker(shape)
    module.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    return module.eval().requires_grad_(False)


def called(module: RequestRanker) -> Program:
    """A module as a program."""
    return lambda inputs: module(*inputs)


def machine_here() -> dict[str, str]:
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
    here, there = machine_here(), described["machine"]
    if here == there:
        return None
    return (
        f"it was compiled for {there['processor']} with {there['instructions']}, and this processor is "
        f"{here['processor']} with {here['instructions']}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Deprecations inside of torch are not the caller's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
