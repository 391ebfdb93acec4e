"""What training shows on a terminal: stages by name, evaluations as whole lines."""

import io

from rich.console import Console

from embeddings.training import Report
from experiments.encoder_progress import training_and_stage_progress, training_progress


def shown(*reports: Report) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    with training_progress(console) as show:
        for report in reports:
            show(report)
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
    with training_and_stage_progress(console) as (show, tell):
        tell("tuples", 7, 7)
        show(Report("stage 2", "tuples", 5, 5, {}, 10.0, None))
        tell("completion, vectors", 3, 9)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "/" in line]
    for line, words in zip(
        lines, (("tuples", "7/7"), ("stage 2", "5/5"), ("completion", "3/9")), strict=True
    ):
        assert all(word in line for word in words)
