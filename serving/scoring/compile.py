"""Makes the request ranker's program, for `serving.scoring.programs` to open.

What multiplies its matrices is chosen by measurement on the machine that packages, bfloat16 among it where it
is worth its rounding. A worker does not import this module.
"""

import json
import logging
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from serving.scoring.arithmetic import Arithmetic, has_bfloat16, with_arithmetic
from serving.scoring.programs import (
    BACKEND,
    BFLOAT16_OBJECT,
    FILES,
    SCRIPT,
    SHAPE,
    WEIGHTS,
    BackendChoice,
    BackendName,
    CompileError,
    MadeProgram,
    SharedObject,
    called,
    machine_here,
    open_program,
    quiet,
)
from serving.scoring.ranker_scorer import Program, array_inputs
from serving.scoring.request_ranker import RankerShape, RequestRanker

Backend = Literal["auto", "aotinductor", "torchscript", "eager"]
Precision = Literal["auto", "float32", "bfloat16"]

#: Largest difference in probability between a program and the module that it was made of, by arithmetic.
TOLERANCE: dict[Arithmetic, float] = {"torch": 1e-5, "onednn": 1e-5, "bfloat16": 5e-3}
#: What bfloat16 may take of float32's time: scores that differ in the third digit have to be worth something.
BFLOAT16_SHARE = 0.8
#: Candidates and purchases of the request by which programs are compared.
TIMED = {"R": 1, "N": 100, "H": 30}
_ROUNDS, _CALLS = 6, 10

#: For processors with AVX2 and more: see `machine_here`.
_AVX2_SETTINGS = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
Maker = Callable[[RequestRanker, list[Tensor], Path], None]
_LOG = logging.getLogger(__name__)


def compile_ranker(
    module: RequestRanker,
    example_inputs: Sequence[Tensor],
    out: Path,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
) -> BackendChoice:
    """Write the program and all that belongs to it into the folder `out`.

    "auto" takes AOTInductor if it can be made here and agrees with the module, else TorchScript, else the
    module as it is, and says in the reason what went wrong. AOTInductor's matrix products are those of
    `serving.scoring.arithmetic` that take the least time here.

    Args:
        example_inputs: the tables as inputs, `serving.scoring.ranker_scorer.table_inputs`, for their types,
            for checks and for timing; what follows them is not read.
        precision: "auto" takes bfloat16 where it takes no more than `BFLOAT16_SHARE` of float32's time and
            its probabilities are within `TOLERANCE`.

    Raises:
        CompileError: the backend or the precision that was asked for (not "auto") cannot be made.
    """
    if precision == "bfloat16":
        backend = "aotinductor" if backend == "auto" else backend
        if backend != "aotinductor" or not has_bfloat16():
            came = "this one has neither" if backend == "aotinductor" else f"got {backend}"
            raise CompileError(
                f"bfloat16 needs the backend aotinductor on a processor with AVX512-BF16 or AMX, {came}; "
                "leave the precision to auto"
            )
    out.mkdir(parents=True, exist_ok=True)
    module = module.eval()
    shape = module.shape
    (out / SHAPE).write_text(shape.model_dump_json(indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, out / WEIGHTS)
    tables = list(example_inputs[: len(shape.tables)])
    choice = _first_that_works(module, tables, out, backend=backend, precision=precision)
    described = {
        **asdict(choice),
        "machine": machine_here(),
        "torch": torch.__version__,
        "tables": [str(table.dtype) for table in tables],
    }
    (out / BACKEND).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return choice


def _first_that_works(
    module: RequestRanker, tables: list[Tensor], out: Path, *, backend: Backend, precision: Precision
) -> BackendChoice:
    makers: dict[BackendName, Maker] = {"aotinductor": _compile, "torchscript": _trace, "eager": _nothing}
    wanted: list[BackendName] = list(makers) if backend == "auto" else [backend]
    failures: list[str] = []
    for name in wanted:
        reason = "; ".join(failures) or ("asked for" if backend != "auto" else _REASON[name])
        try:
            if name == "aotinductor":
                programs, of_them = _shared_objects(module, tables, out, precision)
                return BackendChoice(name, f"{reason}; {of_them}", programs)
            makers[name](module, tables, out / SCRIPT)
            _compared(
                module, tables, open_program(out, module.shape, BackendChoice(name, reason), _types(tables))
            )
        except Exception as error:  # compilers fail in many ways; each is a reason to take the next backend
            failures.append(f"{name} failed: {_first_line(error)}")
            _LOG.warning("%s", failures[-1])
            continue
        return BackendChoice(name, reason)
    raise CompileError(
        f"{failures[-1]}; ask for another backend, or for auto, which takes the first that works"
    )


def _shared_objects(
    module: RequestRanker, tables: list[Tensor], out: Path, precision: Precision
) -> tuple[tuple[MadeProgram, ...], str]:
    """The programs that are left in `out`, the one to run first, and what decided."""
    inputs = _inputs_of(module.shape, tables, TIMED)
    kinds: list[Arithmetic] = ["torch", "onednn"]
    kinds += ["bfloat16"] if precision != "float32" and has_bfloat16() else []
    before_ms = milliseconds({kind: called(with_arithmetic(module, kind)) for kind in kinds}, inputs)
    float32 = min(kinds[:2], key=before_ms.__getitem__)
    wanted = [float32]
    # What gains nothing as torch runs it gains nothing when compiled: half a minute is saved.
    if precision == "bfloat16" or before_ms.get("bfloat16", np.inf) < before_ms[float32]:
        wanted.append("bfloat16")
    opened: dict[Arithmetic, Program] = {}
    differences: dict[Arithmetic, float] = {}
    failure = None
    for kind in wanted:
        try:
            _compile(with_arithmetic(module, kind), tables, out / FILES[kind])
            opened[kind] = SharedObject(out / FILES[kind], module.shape, _types(tables), kind)
            differences[kind] = _compared(module, tables, opened[kind], TOLERANCE[kind])
        except Exception as error:
            (out / FILES[kind]).unlink(missing_ok=True)
            if kind == float32 or precision == "bfloat16":
                raise
            opened.pop(kind, None)
            failure = f"bfloat16 failed: {_first_line(error)}"
            _LOG.warning("%s", failure)
    p50_ms = milliseconds(opened, inputs)
    made = [MadeProgram(kind, round(p50_ms[kind], 4), differences[kind]) for kind in opened]
    if len(made) == 1:
        without = "" if "bfloat16" in kinds else ", no bfloat16 here or none wanted"
        return (made[0],), failure or f"{float32} {made[0].p50_ms:.2f} ms{without}"
    share = p50_ms["bfloat16"] / p50_ms[float32]
    times = ", ".join(f"{one.arithmetic} {one.p50_ms:.2f} ms" for one in made)
    if share > BFLOAT16_SHARE and precision != "bfloat16":
        (out / BFLOAT16_OBJECT).unlink()
        return (made[0],), f"{times}: not worth its rounding"
    return (made[1], made[0]), times


def milliseconds(programs: Mapping[Any, Program], inputs: list[Tensor]) -> dict[Any, float]:
    """Median processor time of each in its quietest of several rounds, in which they take turns."""
    rounds_ms: dict[Any, list[float]] = {name: [] for name in programs}
    with torch.inference_mode(), _one_thread():
        for turn in range(_ROUNDS):
            for name, program in programs.items():
                times_s = []
                for _ in range(_CALLS):
                    before_s = time.thread_time()
                    program(inputs)
                    times_s.append(time.thread_time() - before_s)
                if turn:  # the first warms up
                    rounds_ms[name].append(1e3 * float(np.median(times_s)))
    return {name: min(medians_ms) for name, medians_ms in rounds_ms.items()}


def _types(tables: Sequence[Tensor]) -> list[str]:
    return [str(table.dtype) for table in tables]


_REASON: dict[str, str] = {
    "aotinductor": "the fastest that can be made here",
    "torchscript": "AOTInductor could not be made",
    "eager": "nothing else could be made",
}


def _compile(module: RequestRanker, tables: list[Tensor], path: Path) -> None:
    # Imported here: only packaging compiles, and a worker starts a second earlier without it.
    from torch._inductor import aoti_compile_and_package

    settings: dict[str, Any] = {"cpp.threads": 1}
    settings |= _AVX2_SETTINGS if machine_here()["instructions"] == "AVX2" else {}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compile-") as folder, _one_thread(), quiet():
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
            path.write_bytes(archive.read(names[0]))


def _trace(module: RequestRanker, tables: list[Tensor], path: Path) -> None:
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(module, tuple(traced_inputs(module.shape, tables)), check_trace=False)
        torch.jit.freeze(traced).save(str(path))


def _nothing(_module: RequestRanker, _tables: list[Tensor], _path: Path) -> None:
    """The weights are there already."""


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


def _compared(
    module: RequestRanker, tables: list[Tensor], program: Program, tolerance: float = TOLERANCE["torch"]
) -> float:
    """The largest difference in probability between a program and its module.

    Over requests of all awkward sizes: exported programs have failed at 1 candidate or no purchase.

    Raises:
        CompileError: it is beyond the tolerance.
    """
    worst = 0.0
    for requests, candidates, purchases in ((1, 1, 1), (1, 2, 1), (1, 1, 3), (2, 3, 2), (3, 40, 5)):
        counts = {"R": requests, "N": candidates, "H": purchases}
        inputs = _inputs_of(module.shape, tables, counts)
        with torch.inference_mode():
            difference = (program(inputs) - module(*inputs)).abs().max()
        worst = max(worst, float(difference) if torch.isfinite(difference) else float("inf"))
    if not worst <= tolerance:
        raise CompileError(f"its scores differ by {worst:.2g} from the module's")
    return worst


def _inputs_of(shape: RankerShape, tables: list[Tensor], counts: dict[str, int]) -> list[Tensor]:
    """Tables and random arrays of so many requests, candidates and purchases."""
    return [*tables, *_random_arrays(shape, tables, counts, np.random.default_rng(sum(counts.values())))]


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
