"""Offline gains beside true online lifts: the arithmetic by hand, and rankers that really serve."""

from pathlib import Path

import pytest
import torch

from experiments.abtest.loop.measures import Value
from experiments.abtest.offline.agreement import (
    AgreementSettings,
    ServedRun,
    _correlation,
    _lift,
    measure_agreement,
)
from experiments.config import load_config
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import generate
from experiments.reports.abtest.agreement_text import agreement_markdown
from features.offline.build import build
from features.schema import FeatureConfig
from ranking.run import RunConfig, execute_run
from tests.experiments.abtest.loop.test_run import RANKER

CONFIG = MarketplaceConfig.preset("tiny", seed=7, images=False, impressions=6_000, days=21)


def served(variant: str, seed: int, auc: float, ctr: float) -> ServedRun:
    value = Value(ctr=ctr, revenue=1.0, relevance=2 - ctr)
    return ServedRun(variant=variant, seed=seed, auc=auc, norm_log_loss=1 - auc, value=value)


RUNS = [
    served("a", 1, 0.70, 0.10),
    served("a", 2, 0.72, 0.10),
    served("b", 1, 0.75, 0.11),
    served("b", 2, 0.73, 0.15),
    served("c", 1, 0.80, 0.12),
]


def test_gains_are_differences_of_means_and_lifts_are_relative() -> None:
    found = _lift("b", RUNS, baseline="a")
    assert found.seeds == 2
    assert found.auc_gain == pytest.approx(0.74 - 0.71)
    assert found.norm_log_loss_gain == pytest.approx(0.26 - 0.29)
    assert found.ctr == pytest.approx(0.13 / 0.10 - 1)
    assert found.revenue == 0
    assert _lift("a", RUNS, baseline="a").auc_gain == 0


def test_a_smaller_log_loss_counts_as_better() -> None:
    variants = [_lift(name, RUNS, baseline="a") for name in ("a", "b", "c")]
    by_auc = _correlation("auc", "ctr", RUNS, variants)
    by_loss = _correlation("norm_log_loss", "ctr", RUNS, variants)
    # AUC orders a, b, c; CTR a, c, b.
    assert by_auc.spearman_variants == pytest.approx(0.5)
    assert by_auc.kendall_variants == pytest.approx(1 / 3)
    assert by_loss.spearman_variants == pytest.approx(0.5)
    assert by_loss.spearman_runs == pytest.approx(by_auc.spearman_runs)
    upside_down = _correlation("auc", "relevance", RUNS, variants)
    assert upside_down.spearman_variants == pytest.approx(-0.5)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> AgreementSettings:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("agreement")
    generate(CONFIG, folder / "data")
    build(folder / "data", folder / "features", load_config(Path("marketplace_features"), FeatureConfig))
    runs = []
    for name, dim in (("small", 4), ("medium", 8), ("large", 12)):
        ranker = RANKER["ranker"] | {"embedding_dim": dim}  # type: ignore[operator]
        content = RANKER | {"variant": name, "features": folder / "features", "ranker": ranker}
        runs.append(folder / name)
        execute_run(RunConfig.model_validate(content), runs[-1], environment={})
    return AgreementSettings(world=folder / "data", runs=tuple(runs), days=1, searches_per_day=100)


def test_each_run_serves_alone_and_is_kept_for_the_next_call(
    settings: AgreementSettings, tmp_path: Path
) -> None:
    found = measure_agreement(settings, tmp_path / "out", command="dashclip abtest agreement")
    assert [run.variant for run in found.runs] == ["small", "medium", "large"]
    assert len({run.value.ctr for run in found.runs}) == 3
    assert found.variants[0].ctr == 0
    stages: list[str] = []
    again = measure_agreement(
        settings, tmp_path / "out", progress=lambda stage, done, total: stages.append(stage)
    )
    assert again.runs == found.runs
    assert "requests" not in stages
    text = agreement_markdown(found)
    assert "**Simulated data.**" in text
    assert f"{found.runs[1].auc:.4f}" in text
    with pytest.raises(ValueError, match="luck was 0, now 1"):
        measure_agreement(settings.model_copy(update={"luck": 1}), tmp_path / "out")


def test_what_has_no_order_is_refused(settings: AgreementSettings, tmp_path: Path) -> None:
    two = settings.model_copy(update={"runs": settings.runs[:2]})
    with pytest.raises(ValueError, match="three variants or more, got small, medium"):
        measure_agreement(two, tmp_path / "out")
    twice = settings.model_copy(update={"runs": (*settings.runs, settings.runs[0])})
    with pytest.raises(ValueError, match="two have the same"):
        measure_agreement(twice, tmp_path / "out")
    missing = settings.model_copy(update={"runs": (*settings.runs, tmp_path)})
    with pytest.raises(ValueError, match="not a finished run"):
        measure_agreement(missing, tmp_path / "out")
    assert not (tmp_path / "out").exists()
