"""What training shows on a terminal: stages by name, evaluations as whole lines."""

import io
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from embeddings.training.loop import Report
from experiments.cli import app
from experiments.runtime.job_pool import BUSY, JobProgress
from experiments.runtime.progress import LINE_EVERY_S, _rate, progress_bars
from tests.embeddings.small_catalog import write_small_catalog

#: A rate at which nothing is learned.
STAGE_1 = """
size = "tiny"
[pretrain]
epochs = 1
batch_size = 8
learning_rate = 1e-9
queue_size = 8
"""


def shown(*reports: Report) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    with progress_bars(console) as bars:
        for report in reports:
            bars.training(report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_each_evaluation_is_one_line_that_names_its_stage_however_narrow_the_terminal():
    measures = {"loss": 1.25, "matching_accuracy": 0.5, "image_finds_title": 0.125}
    lines = shown(
        Report("text warm-up", "titles", 1, 2, {"contrast": 1.0}, 10.0, None),
        Report("text warm-up", "titles", 2, 2, {"contrast": 1.0}, 10.0, {"loss": 2.0}),
        Report("stage 1", "products", 1_500, 3_000, {"itc": 3.0}, 20.0, measures),
    )
    assert lines[0] == "  text warm-up, step 2 of 2: loss 2.0000"
    assert lines[1] == (
        "  stage 1, step 1,500 of 3,000: loss 1.2500, matching_accuracy 0.5000, image_finds_title 0.1250"
    )


def followed(console: Console, log: Path) -> list[str]:
    """The lines of the log, while a run trains for three intervals, is begun again, and fails."""
    now = [0.0]
    with progress_bars(console, log=log, clock=lambda: now[0]) as bars:
        bars.job(JobProgress("dcn seed 1", error=BUSY, ended=True))
        for step in range(7):
            bars.job(JobProgress("dcn seed 2", "loss 0.5", step, 8))
            now[0] += LINE_EVERY_S / 2
        bars.job(JobProgress("dcn seed 2", error="ValueError: [no] luck", ended=True))
        assert "failed" in log.read_text(), "said when it happens, not at the end"
    return [line[20:] for line in log.read_text().splitlines()]


SAID = [
    f"dcn seed 1: {BUSY}",
    "dcn seed 2 began",
    "dcn seed 2: 2 of 8, loss 0.5",
    "dcn seed 2: 4 of 8, loss 0.5",
    "dcn seed 2: 6 of 8, loss 0.5",
    "dcn seed 2 failed: ValueError: [no] luck",
]


def test_a_log_and_an_output_that_is_no_terminal_have_a_line_now_and_then(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60)
    log = tmp_path / "new" / "sweep.log"
    assert followed(console, log) == SAID
    assert isinstance(console.file, io.StringIO)
    assert [line.strip() for line in console.file.getvalue().splitlines()][: len(SAID)] == SAID
    assert followed(console, log) == 2 * SAID, "what was there stays"


def test_a_terminal_has_bars_and_only_the_lines_that_no_bar_shows(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    assert followed(console, tmp_path / "log") == SAID
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert SAID[0] in shown
    assert SAID[-1] in shown
    assert "began" not in shown
    assert "4 of 8" not in shown


def test_a_rate_below_one_a_second_is_said_by_its_inverse() -> None:
    assert _rate(3_000, 2.5) == "1,200/s"
    assert _rate(3, 36.0) == "12 s each"
    assert _rate(0, 36.0) == _rate(5, 0.1) == ""


def test_what_somebody_has_to_say_is_a_line_on_the_terminal_and_in_the_log(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with progress_bars(console, log=tmp_path / "run.log") as bars:
        bars.say("day 1 of 10: 3,000 searches")
    assert isinstance(console.file, io.StringIO)
    assert "day 1 of 10: 3,000 searches" in console.file.getvalue()
    assert (tmp_path / "run.log").read_text()[20:] == "day 1 of 10: 3,000 searches\n"


def test_every_stage_has_a_bar_of_its_own():
    lines = shown(
        Report("text warm-up", "titles", 1, 2, {}, 10.0, None),
        Report("image warm-up", "images", 3, 5, {}, 10.0, None),
    )
    assert [("1/2" in line, "3/5" in line) for line in lines if "━" in line or "/" in line] == [
        (True, False),
        (False, True),
    ]


def test_training_and_the_steps_around_it_share_a_display():
    console = Console(file=io.StringIO(), width=100)
    with progress_bars(console) as bars:
        bars("tuples", 7, 7)
        bars.training(Report("stage 2", "tuples", 5, 5, {}, 10.0, None))
        bars("completion, vectors", 3, 9)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "/" in line]
    for line, words in zip(
        lines, (("tuples", "7/7"), ("stage 2", "5/5"), ("completion", "3/9")), strict=True
    ):
        assert all(word in line for word in words)


def test_a_narrow_terminal_cuts_the_losses_and_neither_names_nor_counts():
    console = Console(file=io.StringIO(), width=80)
    with progress_bars(console) as bars:
        bars.training(Report("stage 2", "tuples", 1_000, 20_000, {"loss": 14.3, "pqc": 2.4}, 829.0, None))
        bars("whitening, products", 2_560, 10_000)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "/" in line]
    for line, words in zip(
        lines, (("stage 2", "1000/20000", "829"), ("whitening, products", "2560/10000")), strict=True
    ):
        assert all(word in line for word in words)


def test_stage_1_says_when_matching_has_learned_nothing_and_what_to_set(tmp_path: Path) -> None:
    data, config = write_small_catalog(tmp_path / "data", products=24), tmp_path / "encoders.toml"
    for early_stop, advised in (("", True), ('early_stop = "contrastive"', False)):
        config.write_text(STAGE_1 + early_stop)
        arguments = ["encode", "pretrain", data, tmp_path / f"run-{advised}", "--config", config]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert ('set early_stop = "contrastive" in [pretrain]' in result.output) == advised
