"""The page of an online experiment: it says what the result says, and holds together alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.abtest.analysis import analyse_folder
from experiments.abtest.experiment_log import write_experiment
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult
from experiments.cli import app
from experiments.reports.abtest.sections import abtest_sections
from experiments.reports.page import Absent, Section
from experiments.reports.sections_text import sections_markdown
from tests.experiments.abtest.test_analysis import latencies
from tests.experiments.abtest.worlds import described, simulated_unit_days
from tests.experiments.reports.page_reader import assert_whole_and_self_contained


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A better challenger, with all tables but slices."""
    folder = tmp_path_factory.mktemp("abtest") / "try"
    table = simulated_unit_days(np.random.default_rng(0), units=1200, days=6, lift=0.3)
    write_experiment(
        folder,
        described(planned_days=6, true_lift={"ctr": 0.3}),
        table,
        latency=latencies(np.random.default_rng(1)),
    )
    return folder


def sections_of(result: AbtestResult) -> dict[str, Section | Absent]:
    return {section.anchor: section for section in abtest_sections(result)}


def test_the_command_writes_page_text_and_numbers_that_agree(experiment: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["abtest", "report", str(experiment), "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    result = AbtestResult.model_validate_json((tmp_path / "result.json").read_bytes())
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert {"simulated", "days", "consumers", "metrics", "srm_p", "coverage"} <= set(written)
    assert set(written["metrics"]["ctr"]) >= {"lift", "low", "high", "true_lift"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_whole_and_self_contained(page)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for shown in (page, text):
        assert "imulated data" in shown
        assert result.decision.sentence.replace(" %", "\u00a0%" if shown is page else " %") in shown
        assert f"{100 * (result.metrics['ctr'].lift or 0):+.1f} %" in shown
    assert result.decision.verdict in ran.output
    assert page.count("<img") == 5


def test_sections_answer_with_the_numbers_of_the_result(experiment: Path) -> None:
    result = analyse_folder(experiment)
    sections = sections_of(result)
    decision, metrics = sections["decision"], sections["metrics"]
    assert isinstance(decision, Section)
    assert isinstance(metrics, Section)
    assert decision.answer == f"Ship. {result.decision.sentence}"
    assert [row[0] for row in metrics.grids[0].rows] == [METRICS[name].title for name in result.metrics]
    bold = {row for row, _ in metrics.grids[0].bold}
    assert bold == {
        place for place, found in enumerate(result.metrics.values()) if (found.p_adjusted or 0) < 0.05
    }
    assert "1 of 1 lie within" in " ".join(metrics.sentences)
    slices = sections["slices"]
    assert isinstance(slices, Section)
    assert [grid.caption for grid in slices.grids] == ["Has purchases."]


def test_what_was_not_logged_is_said_where_it_would_stand(tmp_path: Path) -> None:
    table = simulated_unit_days(np.random.default_rng(2), units=200, days=1, before=False)
    write_experiment(
        tmp_path / "e", described(), table.select(["unit", "variant", "day", "impressions", "clicks"])
    )
    sections = sections_of(analyse_folder(tmp_path / "e"))
    absent = {anchor for anchor, section in sections.items() if isinstance(section, Absent)}
    assert absent == {"days", "novelty", "slices", "guardrails"}
    text = sections_markdown(list(sections.values()), title="T", lead="L")
    assert text.startswith("# T\n\nL\n\n## What to do\n\n*Should the challenger be shipped?*\n\nGo on. ")
    assert "The log has one day." in text


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["abtest", "report", str(tmp_path)])
    assert ran.exit_code != 0
    assert "has no experiment.json" in str(ran.exception)
