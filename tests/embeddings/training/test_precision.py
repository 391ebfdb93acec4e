"""Which dtype dense products use, on processors of every kind."""

import pytest
import torch

from embeddings.training.precision import has_bfloat16_units, onednn_multiplies_float32, resolve_precision

CPU = torch.device("cpu")


def _processor(monkeypatch: pytest.MonkeyPatch, *, onednn: bool, **units: object) -> None:
    capabilities = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False} | units
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)


@pytest.mark.parametrize(
    ("onednn", "units", "expected"),
    [
        (True, {}, False),  # AVX-512 without bfloat16 units: oneDNN emulates it
        (True, {"avx512_bf16": True}, True),
        (True, {"amx_bf16": True}, True),
        (False, {"amx_bf16": True}, False),  # oneDNN was held to a lesser instruction set
        (False, {}, False),
        (True, {"architecture": "aarch64"}, True),
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, units: dict[str, object], expected: bool
) -> None:
    _processor(monkeypatch, onednn=onednn, **units)
    assert has_bfloat16_units(CPU) is expected
    assert resolve_precision("auto", CPU) == ("bfloat16" if expected else "float32")


def test_a_named_precision_is_used_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for onednn in (False, True):
        _processor(monkeypatch, onednn=onednn)
        assert resolve_precision("bfloat16", CPU) == "bfloat16"
        assert resolve_precision("float32", CPU) == "float32"


def test_this_machine_answers() -> None:
    assert resolve_precision("auto", CPU) == ("bfloat16" if has_bfloat16_units(CPU) else "float32")


@pytest.mark.parametrize(
    ("onednn", "units", "expected"),
    [
        (True, {"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        (True, {"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_f": True}, False),  # MKL uses them there
        (True, {"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        (False, {"cpu_name": "AMD EPYC", "avx512_f": True}, False),  # oneDNN was held to a lesser one
        (True, {}, False),
    ],
)
def test_onednn_multiplies_float32_only_where_mkl_leaves_units_unused(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, units: dict[str, object], expected: bool
) -> None:
    _processor(monkeypatch, onednn=onednn, **units)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn_multiplies_float32.__wrapped__() is expected
