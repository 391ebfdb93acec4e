"""Mined negatives as a setting of the encoders, and as a variant of their ablation."""

from pathlib import Path

import pytest

import experiments.encoders as encoders
from embeddings.hard_negatives import MiningConfig
from experiments.config import load_config
from experiments.encoders import EncodersConfig, run_align

SETTINGS = {
    "pretrain": None,
    "align": {"epochs": 2, "batch_size": 8, "learning_rate": 0.001},
}


def test_mining_is_off_unless_asked_for_and_complete_without_settings() -> None:
    assert EncodersConfig.model_validate(SETTINGS).mining is None
    assert EncodersConfig.model_validate(SETTINGS | {"mining": {}}).mining == MiningConfig()


def test_mining_needs_an_epoch_before_it_and_one_after_it() -> None:
    align = SETTINGS["align"] | {"epochs": 1}  # type: ignore[operator]
    with pytest.raises(ValueError, match="at least 2 epochs, one before it and one after, got 1"):
        EncodersConfig.model_validate(SETTINGS | {"mining": {}, "align": align})


@pytest.mark.parametrize("mining", [None, MiningConfig(neighbours=7)])
def test_stage_2_runs_in_two_rounds_where_mining_is_asked_for(
    mining: MiningConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, MiningConfig | None]] = []
    for name in ("align", "align_with_mining"):
        monkeypatch.setattr(
            encoders, name, lambda *_, name=name, **options: called.append((name, options.get("mining")))
        )
    config = EncodersConfig.model_validate(SETTINGS | {"mining": mining})
    run_align(Path("data"), Path("out"), config, start=object())  # type: ignore[arg-type]
    assert called == [("align_with_mining", mining) if mining else ("align", None)]


def test_the_shipped_config_has_epochs_enough_to_mine() -> None:
    shipped = load_config(Path("encoders_small"), EncodersConfig)
    EncodersConfig.model_validate(shipped.model_dump() | {"mining": {}})
