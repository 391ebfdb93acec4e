"""`dashclip validate`: what it prints, what it writes, and how it ends."""

import json

from typer.testing import CliRunner

from experiments.cli import app
from features.inputs.tables import InputError
from tests.features.inputs.small_tables import good_rows, grade, write_tables


def run(*arguments: object):
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


def test_good_tables_pass_and_nothing_is_written_unasked(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "passed" in result.output
    assert "Broken rules" not in result.output
    assert "go on with" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_rows_are_listed_with_file_and_row_and_set_aside(tmp_path):
    rows = good_rows()
    rows["relevance"].append(grade(9, grade=3))
    folder = write_tables(tmp_path / "in", rows)
    result = run(folder, "--out", tmp_path / "out", "--write-clean", "--max-bad-share", 0.5)
    assert result.exit_code == 0, result.output
    assert "grade_out_of_range: relevance.parquet row 6, column 'grade' is '3'" in result.output
    assert f"go on with {tmp_path / 'out' / 'clean'}: " in result.output
    unasked = run(folder, "--max-bad-share", 0.5)
    assert f"dashclip validate {folder} --out OUT --write-clean" in unasked.output
    assert (tmp_path / "out" / "quarantine" / "relevance.parquet").exists()
    assert (tmp_path / "out" / "clean" / "relevance.parquet").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passed"]


def test_too_many_bad_rows_fail_after_the_report_is_written(tmp_path):
    rows = good_rows()
    rows["relevance"].append(grade(9, grade=3))
    folder = write_tables(tmp_path / "in", rows)
    result = run(folder, "--out", tmp_path / "out", "--write-clean")
    assert isinstance(result.exception, InputError)
    assert "more than the 1.00% allowed" in str(result.exception)
    assert not (tmp_path / "out" / "clean").exists()
    assert not json.loads((tmp_path / "out" / "report.json").read_text())["passed"]


def test_a_clean_copy_needs_a_place(tmp_path):
    result = run(write_tables(tmp_path / "in", good_rows()), "--write-clean")
    assert "needs --out" in str(result.exception)
