"""The suite says the same on older processors: what kernels may decide runs again in children that see less.

A child cannot see more than its processor has, but it can always be told to see less.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the classes are those of x86 processors"
)

ROOT = Path(__file__).resolve().parents[1]
#: Variables that torch's own kernels, oneDNN and MKL read when they start. "plain" runs on any processor.
CLASSES = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "plain": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
#: Files whose float32 results depend on the order in which a kernel adds.
SENSITIVE = (
    "embeddings/tables/test_odd_products.py",
    "embeddings/encoders/test_modules.py",
    "embeddings/training/test_fast_products.py",
    "embeddings/training/test_losses.py",
    "embeddings/training/test_precision.py",
    "embeddings/tables/test_off_the_shelf.py",
    "embeddings/training/test_pqc_loss.py",
    "embeddings/training/test_title_token_loss.py",
    "ranking/test_cross_network.py",
    "ranking/test_dense_layers.py",
    "ranking/test_model.py",
    "ranking/test_towers.py",
    "serving/scoring/test_query_encoder.py",
    "serving/scoring/test_request_ranker.py",
    "serving/scoring/test_ranker_scorer.py",
)


def run_as(processor: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= CLASSES[processor] | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("processor", CLASSES)
def test_without_bfloat16_units_auto_is_float32(processor: str) -> None:
    code = (
        "import torch; from embeddings.training.precision import resolve_precision\n"
        "print(torch.backends.cpu.get_cpu_capability(), resolve_precision('auto', torch.device('cpu')))"
    )
    done = run_as(processor, "-c", code)
    assert done.returncode == 0, done.stderr
    capability, precision = done.stdout.split()
    assert capability in {"AVX2": ("AVX2", "DEFAULT"), "plain": ("DEFAULT",)}[processor]
    assert precision == "float32"


@pytest.mark.parametrize("processor", CLASSES)
def test_numerically_sensitive_tests_pass_on_a_lesser_processor(processor: str) -> None:
    chosen = [f"tests/{name}" for name in SENSITIVE]
    done = run_as(processor, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-x", *chosen)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
