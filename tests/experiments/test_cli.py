"""The command line as a whole: mistakes end in one sentence, every option is explained, help is quick."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from experiments import cli
from tests.features.small_logs import CONFIG, random_tables, write_tables

Tables = dict[str, pa.Table]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `dashclip ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["dashclip", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def changed(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(
        table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type)
    )


def wrong_type(tables: Tables) -> None:
    tables["impressions"] = replaced(tables["impressions"], "user_id", np.linspace(0, 1, 400))


def missing_column(tables: Tables) -> None:
    tables["impressions"] = tables["impressions"].rename_columns({"clicked": "clickd"})


def no_zone(tables: Tables) -> None:
    shown = tables["impressions"]["timestamp"].cast(pa.timestamp("us"))
    tables["impressions"] = replaced(tables["impressions"], "timestamp", shown.combine_chunks())


def beyond_int64(tables: Tables) -> None:
    numbers = np.arange(400, dtype=np.uint64) + np.uint64(2**63)
    tables["impressions"] = replaced(tables["impressions"], "impression_id", numbers)


def twice(tables: Tables) -> None:
    number = tables["impressions"]["impression_id"][0].as_py()
    tables["impressions"] = changed(tables["impressions"], "impression_id", 5, number)


def unknown_product(tables: Tables) -> None:
    tables["impressions"] = changed(tables["impressions"], "product_id", 5, 999)


def other_label(tables: Tables) -> None:
    tables["impressions"] = changed(tables["impressions"], "clicked", 5, 2)


def one_class(tables: Tables) -> None:
    labels = np.zeros(400, np.int8)
    tables["impressions"] = replaced(tables["impressions"], "clicked", labels).drop_columns(
        ["click_timestamp"]
    )


def empty(tables: Tables) -> None:
    tables["purchases"] = tables["purchases"].slice(0, 0)


@pytest.mark.parametrize(
    "breakage, file, words",
    [
        (wrong_type, "impressions.parquet", ["'user_id'", "cast it to int64", "or string"]),
        (missing_column, "impressions.parquet", ["'clicked'", "did you mean 'clickd'"]),
        (no_zone, "impressions.parquet", ["'timestamp'", "UTC"]),
        (beyond_int64, "impressions.parquet", ["'impression_id'", "string"]),
        (twice, "impressions.parquet", ["row 5", "'impression_id'", "dashclip validate"]),
        (unknown_product, "impressions.parquet", ["row 5", "'product_id'", "999", "dashclip validate"]),
        (other_label, "impressions.parquet", ["row 5", "'clicked'", "'2'", "dashclip validate"]),
        (one_class, "impressions.parquet", ["clicked = 0", "log both"]),
        (empty, "purchases.parquet", ["no rows", "leave the table out"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-",
)
def test_tables_that_cannot_be_used_end_in_one_sentence_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    breakage: Callable[[Tables], None],
    file: str,
    words: list[str],
) -> None:
    tables = random_tables(1)
    breakage(tables)
    error = refused_build(tmp_path, monkeypatch, capsys, write_tables(tmp_path / "data", tables))
    for word in (file, *words):
        assert word in error


def test_a_half_written_table_ends_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    data = write_tables(tmp_path / "data", random_tables(1))
    whole = (data / "impressions.parquet").read_bytes()
    (data / "impressions.parquet").write_bytes(whole[: len(whole) // 2])
    error = refused_build(tmp_path, monkeypatch, capsys, data)
    assert f"{data}/impressions.parquet" in error
    assert "not a complete Parquet file" in error
    assert "write it again" in error


def test_an_unknown_key_of_the_config_ends_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    data = write_tables(tmp_path / "data", random_tables(1))
    error = refused_build(tmp_path, monkeypatch, capsys, data, counters={"key": ["query"]})
    assert "config.toml: unknown key 'counters.key'; did you mean 'keys'?" in error


def test_a_memory_limit_that_is_no_size_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    data = write_tables(tmp_path / "data", random_tables(1))
    error = refused_build(tmp_path, monkeypatch, capsys, data, "--memory-limit", "much")
    assert "memory limit 'much' is not a size; write for example 2GB" in error


def refused_build(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Path,
    *options: str,
    **settings: Any,
) -> str:
    """The one sentence on stderr with which `features build` ends; nothing may be left of the build."""
    config = write_config(folder / "config.toml", settings)
    before = sorted(folder.rglob("*"))
    code = run_main(
        monkeypatch, "features", "build", data, folder / "out", "--config", config, "--threads", 1, *options
    )
    error = capsys.readouterr().err
    assert code == 2
    assert sorted(folder.rglob("*")) == before
    assert "Traceback" not in error
    sentence, hint = error.strip().split("\n")
    assert sentence.startswith("error: ")
    assert "--traceback" in hint
    return sentence


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    """The features of `small_logs` as TOML; `settings` replaces top-level keys."""
    content = CONFIG.model_dump(mode="json", exclude_none=True) | settings
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in content.items()))
    return path


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def test_good_tables_are_built_from_the_command_line(tmp_path, monkeypatch, capsys):
    data = write_tables(tmp_path / "data", random_tables(1))
    config = write_config(tmp_path / "config.toml", {})
    code = run_main(
        monkeypatch, "features", "build", data, tmp_path / "out", "--config", config, "--threads", 1
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "400 impressions of 10 users" in " ".join(printed.out.split())
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_traceback_is_shown_on_request(tmp_path, monkeypatch):
    arguments = ["features", "build", str(tmp_path / "none"), str(tmp_path / "out"), "--config"]
    monkeypatch.setattr(sys, "argv", ["dashclip", "--traceback", *arguments, "marketplace_features"])
    with pytest.raises(ValueError, match="is not a folder") as caught:
        cli.main()
    assert [entry.name for entry in caught.traceback][-1] == "open", "the error comes from where it happened"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EEXIST, "runs/x: file exists; a file stands where a folder is needed: choose another folder"),
        (errno.EROFS, "runs/x: read-only file system; choose another folder, or change who may write there"),
        (errno.ENOSPC, "runs/x: no space left on device; free some disk, and give the same command again"),
        (errno.EIO, "runs/x: input/output error; look at the folder"),
    ],
)
def test_what_the_system_says_of_a_file_ends_in_what_to_do(monkeypatch, capsys, number, said):
    def fails() -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    monkeypatch.setattr(cli, "app", fails)
    assert run_main(monkeypatch, "doctor") == 2
    assert f"error: {said}" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("precious")
    assert run_main(monkeypatch, "generate", tmp_path / "out", "--size", "tiny", "--no-images") == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "precious"


def test_the_module_is_the_command(tmp_path):
    """In a process of its own: what a caller sees of an error, without and with its traceback."""
    command = [sys.executable, "-m", "experiments"]
    ended = subprocess.run([*command, "report", str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path} holds neither input tables (products")
    traced = subprocess.run(
        [*command, "--traceback", "report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert traced.returncode == 1
    assert "Traceback (most recent call last)" in traced.stderr
    assert "FileNotFoundError" in traced.stderr


_HELP = """
import sys
sys.argv = ["dashclip", "--help"]
from experiments.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(sorted({"torch", "duckdb", "pandas", "pyarrow", "sklearn", "matplotlib", "numpy"} & set(sys.modules)))
"""


def test_help_imports_no_heavy_library():
    printed = subprocess.run([sys.executable, "-c", _HELP], capture_output=True, text=True, check=True).stdout
    assert "five-seed" in printed
    assert printed.splitlines()[-1] == "[]"


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(cli.app)))


def test_every_command_is_there():
    groups = {path[0] for path in COMMANDS if path}
    assert groups - {"proofs"} == {
        *(
            "demo",
            "init",
            "search",
            "predict",
            "doctor",
            "generate",
            "import",
            "validate",
            "features",
            "embed",
            "train",
            "abtest",
        ),
        *("sweep", "report", "publish", "bench", "config", "encode", "grade", "importance"),
        *("package", "refresh", "replay", "archive", "serve", "stop", "loadtest", "drift", "fuzz", "soak"),
        *("sign", "route", "join-clicks", "deploy", "rollback", "fleet", "schema"),
    }
    assert {("features", "build"), ("embed", "lsa"), ("import", "movielens"), ("config", "show")} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_parameters(path):
    command = COMMANDS[path]
    assert (command.help or "").strip()
    for parameter in command.params:
        text = (getattr(parameter, "help", None) or "").strip()
        assert text.endswith((".", ")")), f"{parameter.name} is explained by {text!r}"
    printed = CliRunner().invoke(cli.app, [*path, "--help"])
    assert printed.exit_code == 0
    for parameter in command.params:
        for name in parameter.opts:
            if name.startswith("--"):
                assert name in printed.output


def test_help_shows_commands_by_job_and_hides_the_proofs_of_the_project():
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    assert re.findall(r"^╭─ (\w+)", shown, re.MULTILINE) == ["Options", *cli.PANELS]
    names = set(re.findall(r"^│ ([a-z]\S*)", shown, re.MULTILINE))
    hidden = {path[0] for path in COMMANDS if path and COMMANDS[path[:1]].hidden}
    assert hidden == {"bench", "fuzz", "soak", "publish"}
    assert names == {path[0] for path in COMMANDS if path} - hidden


def test_the_proofs_are_the_same_commands_under_both_spellings():
    old = {"ablate": ("encode", "ablate"), "publish-encoders": ("encode", "publish")}
    proofs = [path for path in COMMANDS if len(path) == 2 and path[0] == "proofs"]
    alone = {"worlds", "publish-worlds", "drift-days"}  # they never had another spelling
    assert {path[1] for path in proofs} == {"bench", "fuzz", "soak", "publish", *alone, *old}
    proofs = [path for path in proofs if path[1] not in alone]
    for _, name in proofs:
        spelled = COMMANDS[old.get(name, (name,))]
        assert spelled.hidden
        assert spelled.help == COMMANDS["proofs", name].help


@pytest.mark.parametrize("path", [path for path in COMMANDS if path and path[0] != "proofs"], ids=" ".join)
def test_every_command_that_takes_arguments_shows_an_example_of_itself(path):
    command = COMMANDS[path]
    if any(parameter.param_type_name == "argument" for parameter in command.params):
        assert re.search(f"Examples?: `dashclip {' '.join(path)} ", command.help)
