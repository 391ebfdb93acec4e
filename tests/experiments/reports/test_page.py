"""What the report looks like: the page, the Markdown, the console table, the printed numbers."""

import io
import re

import pytest
from rich.console import Console

from experiments.reports.table2 import plots
from experiments.reports.table2.page import to_html
from experiments.reports.table2.text import console_table, to_markdown
from experiments.statistics.cells import limits, signed
from experiments.statistics.intervals import Interval
from experiments.sweeps.table2 import build_report, to_json, variant_title
from tests.experiments.reports.page_reader import assert_whole_and_self_contained
from tests.experiments.sweeps.sweep_folders import write_sweep

QUICK = 20  # bootstrap resamples


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return build_report(write_sweep(tmp_path_factory.mktemp("sweep") / "example"), bootstrap_resamples=QUICK)


@pytest.fixture(scope="module")
def page(table):
    return to_html(table)


def test_the_page_is_well_formed_self_contained_and_says_simulated_first(page):
    assert len(assert_whole_and_self_contained(page).sources) == 4
    assert 0 < page.index("SIMULATED data") < page.index("<h1>")
    for needed in ("0.7787 / 0.8747", "What the numbers mean", "abc1234", "Example CPU", "torch 2.13.0"):
        assert needed in page


def test_the_same_numbers_draw_the_same_bytes(table):
    assert plots.learning_curves(table) == plots.learning_curves(table)


def test_names_from_the_sweep_cannot_break_the_page(tmp_path):
    sweep = write_sweep(tmp_path / "odd", name="<script>alert(1)</script>", seeds=(1, 2))
    text = to_html(build_report(sweep, bootstrap_resamples=QUICK))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_markdown_tables_have_as_many_cells_as_headings(table):
    blocks = re.findall(r"(?:^\|.*\|$\n)+", to_markdown(table), flags=re.MULTILINE)
    assert len(blocks) == 9
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("width", [80, 160])
def test_the_console_table_is_whole_at_any_usual_width(table, width):
    console = Console(width=width, file=io.StringIO())
    console.print(console_table(table))
    text = console.file.getvalue()
    assert "SIMULATED" in text
    assert "Calib." in text
    for variant in to_json(table)["variants"].values():
        for name in ("auc_mean", "norm_logloss_mean", "auc_diff_low", "auc_diff_users_high"):
            if name in variant:
                assert f"{variant[name]:.4f}" in text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("dcn", "DCN baseline"),
        ("dcn_pq_sim", "DCN + product + query + similarity"),
        ("dcn_p_history", "DCN + product + purchase history"),
        (
            "dcn_pq_sim_history_random",
            "DCN + product + query + similarity + purchase history (random initialisation)",
        ),
        ("mine", "mine"),
    ],
)
def test_variant_names_read_as_titles(name, title):
    assert variant_title(name) == title


def test_numbers_are_printed_with_a_sign_only_where_it_means_something():
    assert [signed(value) for value in (0.01, -0.01, 0.00001, -0.00001)] == [
        "+0.0100",
        "-0.0100",
        "0.0000",
        "0.0000",
    ]
    assert limits(Interval(mean=0, low=-0.01, high=0.02)) == "-0.0100 … 0.0200"
    assert limits(Interval(mean=0, low=None, high=None)) == "–"
