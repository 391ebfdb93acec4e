"""Is this machine able to train, and what is the exact fix where it is not?

Each check is a pure function from facts to a `Finding`; `diagnose` gathers the facts. The facts behind them:
torch, fbgemm and torchrec must fit together, but no resolver can see it (torchrec asks for any `fbgemm-gpu`,
which declares no torch), so a mismatch ends in an undefined symbol at the first lookup.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.runtime.environment import cpu_model, installed_versions
from features.machine import usable_cores, usable_memory_bytes

Status = Literal["ok", "optional", "warn", "fail"]

#: The versions this project is tested with; torch, fbgemm and torchrec are built for one another.
TESTED = {"torch": "2.13.0", "fbgemm": "1.8.0", "torchrec": "1.8.0", "torchmetrics": "1.0.3"}
CPU_BUILD, CUDA_BUILD = "fbgemm-gpu-cpu", "fbgemm-gpu"
DISTRIBUTION = "dashclip-ranker"
#: What each optional extra of the package is for. Those that `check_builds` looks at are not here.
EXTRAS = {
    "fastapi": "serving without Java: `dashclip serve PACKAGE --fastapi`",
    "peers": "comparing the server with Redis and ONNX: `make bench-serving`",
    "weights": "published text weights to start encoders from: `--start all-minilm-l6-v2`",
    "sentence-transformers": "vectors of any such model: `dashclip embed sentence-transformers`",
    "lora": "a language model tuned on grades: `dashclip grade train --grader tuned-model`",
    "mlflow": "runs and their evaluations on an MLflow server: `dashclip train … --mlflow URI`",
    "abtest": "online experiments planned and analysed: `dashclip abtest`",
    "spark": "features on a cluster: `dashclip features build … --engine spark`; needs Java 17",
    "signing": "packages signed, and none other served: `dashclip sign`, `serve --trusted-key`",
    "otel": "spans of served requests to OpenTelemetry: `dashclip serve --traces`",
    "dev": "tests and checks: `make check`",
}
BUILD_EXTRAS = ("cpu", "cuda")
GIB = 1 << 30
PROBE_TIMEOUT_S = 300


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `fix` is empty when the status is ok. What is optional may stay missing."""

    name: str
    status: Status
    found: str
    fix: str = ""


def diagnose(folder: Path) -> list[Finding]:
    """Check this machine; `folder` is where runs will be written."""
    versions = installed_versions((*TESTED, CPU_BUILD, CUDA_BUILD))
    findings = [check_python(sys.version_info[:3]), *check_versions(versions), check_builds(versions)]
    if all(finding.status != "fail" for finding in findings):
        findings.append(check_op_library(*run_probe()))
    findings += _check_processor()
    memory_bytes = _available_memory()
    findings += [
        check_memory(memory_bytes),
        check_disk(shutil.disk_usage(_existing(folder)).free),
        check_java(_java_version()),
        *check_extras(_requirements()),
    ]
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when something fails, else 0; warnings do not count."""
    return int(any(finding.status == "fail" for finding in findings))


def check_python(version: tuple[int, ...]) -> Finding:
    """3.11 or later, for tomllib and the typing that the code uses."""
    found = ".".join(str(part) for part in version)
    if version < (3, 11):
        return Finding("python", "fail", found, "make the virtual environment with Python 3.11 or later")
    return Finding("python", "ok", found)


def check_versions(versions: Mapping[str, str | None]) -> list[Finding]:
    """torch, fbgemm, torchrec and torchmetrics, each against the tested version.

    Another release of torch, fbgemm or torchrec fails; another patch of the same minor release warns.
    """
    fbgemm = CPU_BUILD if versions.get(CPU_BUILD) or not versions.get(CUDA_BUILD) else CUDA_BUILD
    distributions = {name: fbgemm if name == "fbgemm" else name for name in TESTED}
    return [_check_version(name, found, versions.get(found)) for name, found in distributions.items()]


def check_builds(versions: Mapping[str, str | None]) -> Finding:
    """Not both builds of fbgemm: they own the same files, and the later one wins."""
    cpu, cuda = versions.get(CPU_BUILD), versions.get(CUDA_BUILD)
    if cpu and cuda:
        return Finding(
            "fbgemm builds",
            "fail",
            f"{CPU_BUILD} {cpu} and {CUDA_BUILD} {cuda} overwrite each other's files",
            f"pip uninstall --yes {CUDA_BUILD} {CPU_BUILD}, then install one: "
            f"pip install {CPU_BUILD}=={TESTED['fbgemm']} without a GPU, else {CUDA_BUILD} "
            "(torchrec installed without --no-deps brings the CUDA build)",
        )
    return Finding("fbgemm builds", "ok", CPU_BUILD if cpu else CUDA_BUILD if cuda else "none")


def check_op_library(return_code: int, output: str) -> Finding:
    """Whether one training step of a fused embedding table went through."""
    if return_code == 0:
        return Finding("op library", "ok", "a fused embedding table was trained for one step")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reason = lines[-1] if lines else "no output"
    if return_code < 0:
        reason = f"killed by signal {-return_code}; {reason}"
    return Finding(
        "op library",
        "fail",
        reason,
        f"torch and fbgemm do not fit together: pip install --force-reinstall torch=={TESTED['torch']} "
        f"{CPU_BUILD}=={TESTED['fbgemm']} (with a GPU: {CUDA_BUILD})",
    )


def check_cpu(model: str, capability: str, *, bf16: bool) -> Finding:
    """AVX2 is what fbgemm needs to be fast; native bf16 is what makes bf16 training fast."""
    found = f"{model}, {capability}, {'bf16 in hardware' if bf16 else 'no bf16 in hardware'}"
    if "AVX" not in capability:
        return Finding(
            "processor", "warn", found, "embedding lookups are slow without AVX2; use another machine"
        )
    if not bf16:
        return Finding(
            "processor",
            "warn",
            found,
            "bf16 training runs here, but emulated and slowly: keep float32. "
            "It needs AVX-512 with BF16 or AMX",
        )
    return Finding("processor", "ok", found)


def check_gpu(names: Sequence[str], fbgemm_build: str | None, *, torch_cuda: str | None) -> Finding:
    """A GPU is optional; one that neither torch nor fbgemm can use is worth a warning."""
    if not names:
        return Finding("GPU", "ok", "none that torch can use; training runs on the processor")
    found = f"{', '.join(names)} (torch for CUDA {torch_cuda})"
    if fbgemm_build != CUDA_BUILD:
        return Finding(
            "GPU",
            "warn",
            f"{found}, but {fbgemm_build or 'no fbgemm'} is installed",
            f"pip uninstall --yes {CPU_BUILD}; pip install {CUDA_BUILD}=={TESTED['fbgemm']}",
        )
    return Finding("GPU", "ok", found)


def check_threads(threads: int, usable_cores: int, busy: float = 0.0) -> Finding:
    """More threads than free cores make OpenMP spin: a tenth of the speed was measured.

    Args:
        busy: cores that other work has kept busy of late.
    """
    found = f"torch threads: {threads}, usable cores: {usable_cores}"
    if threads > usable_cores:
        return Finding("threads", "warn", found, f"export OMP_NUM_THREADS={usable_cores}")
    if threads > 1 and threads + busy > usable_cores + 0.5:
        fix = f"wait for the other work, or export OMP_NUM_THREADS={max(1, round(usable_cores - busy))}"
        return Finding("threads", "warn", f"{found}, of them busy with other work: {busy:.1f}", fix)
    return Finding("threads", "ok", found)


def check_memory(available_bytes: int) -> Finding:
    """The demo needs about 2 GiB."""
    found = f"{available_bytes / GIB:.1f} GiB available"
    if available_bytes < 2 * GIB:
        return Finding("memory", "fail", found, "free memory until 2 GiB are available, or use --size tiny")
    if available_bytes < 4 * GIB:
        return Finding("memory", "warn", found, "enough for the demo; run one process at a time in sweeps")
    return Finding("memory", "ok", found)


def check_disk(free_bytes: int) -> Finding:
    """The demo writes about 1 GiB."""
    found = f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < 2 * GIB:
        return Finding("disk", "fail", found, "free 2 GiB where the runs are written, or choose another disk")
    if free_bytes < 10 * GIB:
        return Finding("disk", "warn", found, "enough for the demo; medium and large data sets need more")
    return Finding("disk", "ok", found)


def check_java(version: str | None) -> Finding:
    """Only TorchServe needs Java, 11 or later."""
    if version is None:
        return Finding(
            "Java", "warn", "not found", "only serving with TorchServe needs it: install OpenJDK 17 for that"
        )
    return Finding("Java", "ok", version)


def check_extras(requirements: Sequence[str]) -> list[Finding]:
    """Each optional extra that the package declares, and what it would give where a part of it is missing.

    Args:
        requirements: those of the installed package, such as `fastapi>=0.115; extra == "fastapi"`.
    """
    names: dict[str, list[str]] = {}
    for requirement in requirements:
        named = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        distribution = re.match(r"[\w.-]+", requirement)
        if named and distribution and named[1] not in BUILD_EXTRAS:
            names.setdefault(named[1], []).append(distribution[0])
    findings = []
    for extra, distributions in names.items():
        versions = installed_versions(tuple(distributions))
        missing = [name for name in distributions if versions.get(name) is None]
        gives = EXTRAS.get(extra, "see pyproject.toml")
        found = f"not installed ({', '.join(missing)})" if missing else "installed"
        how = f"make setup EXTRA={extra}" if extra == "weights" else f"pip install '{DISTRIBUTION}[{extra}]'"
        fix = f"optional, for {gives}: {how}" if missing else ""
        findings.append(Finding(f"extra {extra}", "ok" if not missing else "optional", found, fix))
    return findings


def probe_op_library() -> None:
    """Train a fused embedding table for one step; raises or crashes where the op library does not load."""
    import torch
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    table = EmbeddingBagConfig(
        name="t", num_embeddings=8, embedding_dim=4, feature_names=["f"], pooling=PoolingType.MEAN
    )
    tables = FusedEmbeddingBagCollection(
        tables=[table], optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1}
    )
    bags = KeyedJaggedTensor.from_lengths_sync(
        keys=["f"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([2, 1])
    )
    before = tables(bags)["f"].detach().clone()
    tables(bags)["f"].sum().backward()
    if torch.equal(before, tables(bags)["f"]):
        raise RuntimeError("the backward pass of the fused table changed nothing")


def run_probe() -> tuple[int, str]:
    """Exit code and error output of `probe_op_library` in a process of its own, as a mismatch may crash."""
    command = [
        sys.executable,
        "-c",
        "from experiments.runtime.doctor import probe_op_library as probe; probe()",
    ]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {PROBE_TIMEOUT_S} s"
    return done.returncode, done.stderr


def _check_version(name: str, distribution: str, version: str | None) -> Finding:
    wanted = TESTED[name]
    fix = f"pip install {'--no-deps ' if name == 'torchrec' else ''}{distribution}=={wanted}"
    if version is None:
        return Finding(name, "fail", f"{distribution} is not installed", fix)
    public = version.partition("+")[0]
    if public == wanted:
        return Finding(name, "ok", f"{distribution} {version}")
    same_minor = public.split(".")[:2] == wanted.split(".")[:2]
    return Finding(
        name, "warn" if same_minor else "fail", f"{distribution} {version}; tested with {wanted}", fix
    )


def _check_processor() -> list[Finding]:
    """Processor, GPU and threads as torch sees them; nothing when torch cannot be imported."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    from embeddings.training.precision import has_bfloat16_units

    builds = installed_versions((CPU_BUILD, CUDA_BUILD))
    build = CPU_BUILD if builds[CPU_BUILD] else CUDA_BUILD if builds[CUDA_BUILD] else None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [
        check_cpu(
            cpu_model(),
            torch.backends.cpu.get_cpu_capability(),
            bf16=has_bfloat16_units(torch.device("cpu")),
        ),
        check_gpu(gpus, build, torch_cuda=torch.version.cuda),
        check_threads(torch.get_num_threads(), usable_cores(), _busy_cores()),
    ]


def _busy_cores() -> float:
    """Cores busy over the last minute; 0 where the load is also that of cores that are not ours."""
    return os.getloadavg()[0] if usable_cores() == os.cpu_count() else 0.0


def _available_memory() -> int:
    import psutil

    return min(int(psutil.virtual_memory().available), usable_memory_bytes())


def _requirements() -> list[str]:
    """What the installed package asks for; nothing where it is run from a folder without being installed."""
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _java_version() -> str | None:
    java = shutil.which("java")
    if java is None:
        return None
    done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
