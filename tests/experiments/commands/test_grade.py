"""`dashclip grade` from pairs to a graded data folder, asking a model on loopback."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.grading.language_models.prompt import TEMPLATE
from embeddings.relevance.grades import read_grades
from embeddings.stages.run_folder import InputConfig
from experiments.cli import app
from experiments.encoders.pipeline import encode_tables
from tests.embeddings.grading.fine_tuned.small_encoder import save_encoder
from tests.embeddings.grading.language_models.chat_server import chat_server, good
from tests.embeddings.grading.language_models.small_models import write_model, write_prompt
from tests.embeddings.grading.small_world import write_small_world
from tests.embeddings.tables.small_tables import save_encoder as save_tiny_encoder

SECRET = "sk-not-to-be-seen"


def call(*words: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, ["grade", *map(str, words)])
    assert (done.exception is not None) == fails, done.output
    return done.output + str(done.exception or "")


def test_from_pairs_to_a_graded_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_small_world(tmp_path / "data")
    said = call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 2, "--random", 1, "--coverage", 0.2)
    assert "16 of 80 queries" in said
    prompt = tmp_path / "prompt.toml"
    assert "checksum" in call("prompt", prompt)
    said = call("export", data, tmp_path / "chats", "--prompt", prompt)
    assert f"{tmp_path / 'chats' / 'train'}.jsonl: " in said
    monkeypatch.setenv("GRADER_KEY", SECRET)
    with chat_server(lambda body, _: good(body)) as server:
        asked = ["run", tmp_path / "pairs.parquet", tmp_path / "graded", "--endpoint", server.url]
        asked += ["--model", "m", "--prompt", prompt, "--secret-from", "GRADER_KEY", "--price", 1000]
        dry = call(*asked, "--dry-run")
        assert "0 graded before" in dry
        assert server.requests == []
        said = call(*asked)
    pairs = pq.read_table(tmp_path / "pairs.parquet").num_rows
    assert f"{pairs} of {pairs} pairs have a grade" in said
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {SECRET}"}
    said += call("import", data, tmp_path / "more", "--graded", tmp_path / "graded")
    grades = read_grades(tmp_path / "more")
    before = read_grades(data).report.pairs
    assert grades.report.pairs_by_source["human"] == before
    assert 0 < grades.report.pairs_by_source["llm"] < pairs
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in files)
    assert SECRET not in said + dry


def test_from_peoples_grades_to_a_queue_for_people(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    for kind in ("overlap", "stack"):
        said = call("train", data, tmp_path / kind, "--grader", kind)
        assert "pairs of people" in said
    rows = [f"{kind}={tmp_path / kind}" for kind in ("overlap", "stack")]
    assert "chosen: stack" in call("choose", data, tmp_path / "out", *rows)
    call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 2, "--random", 1, "--coverage", 0.2)
    call("run", tmp_path / "pairs.parquet", tmp_path / "graded", "--grader", tmp_path / "stack")
    said = call(
        "report", data, tmp_path / "out", rows[1], "--chosen", "stack", "--graded", tmp_path / "graded"
    )
    assert "pairs that people did not" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "choice.json", "choice.md", "grading.json", "grading.md",
    }  # fmt: skip
    said = call("queue", tmp_path / "graded", tmp_path / "pairs.parquet", tmp_path / "queue.csv", "--n", 5)
    assert said.startswith("5 pairs")


def test_from_an_audit_to_corrected_grades(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    relevance = pq.read_table(data / "relevance.parquet")
    grade_N = relevance["grade"].to_numpy().copy()
    grade_N[::20] = 2 - grade_N[::20]
    pq.write_table(relevance.set_column(2, "grade", pa.array(grade_N)), data / "relevance.parquet")
    said = call("audit", data, tmp_path / "audit.csv", "--folds", 3, "--n", 7)
    assert f"the 7 most suspicious are in {tmp_path / 'audit.csv'}" in said.replace("\n", "")
    header, *rows = (tmp_path / "audit.csv").read_text().splitlines()
    (tmp_path / "audit.csv").write_text("\n".join([header, rows[0] + "1", *rows[1:]]))
    said = call("import", data, tmp_path / "more", "--answers", tmp_path / "audit.csv")
    assert "1 pairs have a corrected grade" in said
    assert "6 rows of people had no grade" in said


def test_the_nearest_examples_come_from_the_data_that_people_graded(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 1, "--random", 0, "--coverage", 0.05)
    prompt = tmp_path / "prompt.toml"
    text = TEMPLATE.replace("# examples_from", "examples_from").replace(
        "# nearest_count = 4", "nearest_count = 2"
    )
    prompt.write_text(text)
    assert "and 2 nearest examples" in call("prompt", prompt)
    asked = ["run", tmp_path / "pairs.parquet", tmp_path / "graded", "--batch-file", "--model", "m"]
    asked += ["--prompt", prompt]
    assert "--examples DATA" in call(*asked, fails=True)
    call(*asked, "--examples", data)
    [requests] = (tmp_path / "graded" / "batch").glob("requests-*.jsonl")
    bodies = [json.loads(line)["body"] for line in requests.read_text().splitlines()]
    assert [body["messages"][1]["content"].count("Query: ") for body in bodies] == [3] * len(bodies)
    (tmp_path / "results.jsonl").write_text("")
    collect = ["collect", tmp_path / "graded", tmp_path / "results.jsonl", "--model", "m", "--prompt", prompt]
    assert f"{len(bodies)} have none yet" in call(*collect, "--examples", data)
    prompt.write_text(TEMPLATE)
    assert "belong together" in call(*asked, "--examples", data, fails=True)


def test_a_missing_secret_and_two_graders_are_named(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    call("pairs", data, tmp_path / "pairs.parquet", "--coverage", 0.05)
    call("prompt", tmp_path / "prompt.toml")
    asked = ["run", tmp_path / "pairs.parquet", tmp_path / "graded", "--model", "m"]
    asked += ["--prompt", tmp_path / "prompt.toml", "--endpoint", "http://localhost:9/v1"]
    assert "no variable NOT_SET" in call(*asked, "--secret-from", "NOT_SET", fails=True)
    assert "name one grader" in call(*asked, "--batch-file", fails=True)
    asked[-1] = "http://me:hidden@localhost/v1"
    said = call(*asked, fails=True)
    assert "must hold no secret" in said
    assert "hidden" not in said


def test_a_cross_encoder_is_trained_chosen_and_grades(tmp_path: Path) -> None:
    data, start = write_small_world(tmp_path / "data"), save_encoder(tmp_path / "bert")
    asked = ["train", data, tmp_path / "ce", "--grader", "cross-encoder", "--most-pairs", 96]
    assert "name its folder by --start" in call(*asked, fails=True)
    told = [*asked, "--start", start]
    assert "reads texts alone" in call(*told, "--tables", f"lsa={tmp_path}", fails=True)
    assert "begins with no model" in call("train", data, tmp_path / "x", "--start", start, fails=True)
    said = call(*told, "--epochs", 1, "--stuffed", 0, "--learning-rate", 0.002)
    assert "learnt from 96 pairs of people and 0 stuffed ones, " in said
    assert "validation loss" in said
    call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 1, "--random", 0, "--coverage", 0.05)
    said = call("run", tmp_path / "pairs.parquet", tmp_path / "graded", "--grader", tmp_path / "ce")
    assert "cross-encoder-" in said
    assert "pairs have a grade" in said
    call("train", data, tmp_path / "overlap", "--grader", "overlap")
    rows = [f"ce={tmp_path / 'ce'}", f"overlap={tmp_path / 'overlap'}"]
    assert "chosen: " in call("choose", data, tmp_path / "out", *rows)
    found = json.loads((tmp_path / "out" / "choice.json").read_text())["graders"]["ce"]
    assert found["pairs_per_core_minute"] > 0
    assert found["gullibility"] is not None


def test_graders_are_combined_and_grade(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    for kind in ("overlap", "stack"):
        call("train", data, tmp_path / kind, "--grader", kind)
    of = [word for kind in ("overlap", "stack") for word in ("--of", f"{kind}={tmp_path / kind}")]
    asked = ["train", data, tmp_path / "both", "--grader", "combined"]
    assert "needs two trained graders at least" in call(*asked, *of[:2], fails=True)
    assert "asks no other graders" in call("train", data, tmp_path / "x", *of, fails=True)
    assert "has no tables of its own" in call(*asked, *of, "--tables", f"x={tmp_path}", fails=True)
    assert "by what overlap, stack say" in call(*asked, *of)
    call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 1, "--random", 0, "--coverage", 0.05)
    said = call("run", tmp_path / "pairs.parquet", tmp_path / "graded", "--grader", tmp_path / "both")
    assert "combined-" in said
    rows = [f"{name}={tmp_path / name}" for name in ("both", "stack")]
    call("choose", data, tmp_path / "out", *rows)
    found = json.loads((tmp_path / "out" / "choice.json").read_text())["graders"]["both"]
    assert found["gullibility"] is not None


def test_a_tuned_model_needs_a_prompt(tmp_path: Path) -> None:
    data, model = write_small_world(tmp_path / "data"), write_model(tmp_path / "model")
    asked = ["train", data, tmp_path / "tuned", "--grader", "tuned-model", "--start", model]
    assert "give --prompt FILE" in call(*asked, fails=True)


def test_a_local_model_grades_what_people_graded_and_is_compared_with_them(tmp_path: Path) -> None:
    data = write_small_world(tmp_path / "data")
    alone = ["--lexical", 0, "--random", 0, "--coverage", 0.05, "--people"]
    call("pairs", data, tmp_path / "pairs.parquet", *alone, "held-out")
    assert "`held-out` or `all`" in call("pairs", data, tmp_path / "x.parquet", *alone, "some", fails=True)
    pairs = pq.read_table(tmp_path / "pairs.parquet").num_rows
    model = write_model(tmp_path / "model")
    write_prompt(tmp_path / "prompt.toml")
    asked = ["run", tmp_path / "pairs.parquet", tmp_path / "graded", "--local-model", model]
    assert "needs --prompt FILE" in call(*asked, fails=True)
    asked += ["--prompt", tmp_path / "prompt.toml", "--batch-size", 16]
    assert "lm-model-" in call(*asked, "--dry-run")
    assert f"{pairs} of {pairs} pairs have a grade" in call(*asked)
    assert f"{pairs} graded before, 0 to grade" in call(*asked)
    call("train", data, tmp_path / "overlap", "--grader", "overlap")
    rows = [f"model={tmp_path / 'graded'}", f"overlap={tmp_path / 'overlap'}"]
    assert "chosen: overlap" in call("choose", data, tmp_path / "out", *rows)
    call("report", data, tmp_path / "out", *rows[:1])
    found = json.loads((tmp_path / "out" / "grading.json").read_text())["graders"]["model"]
    assert (found["unanswered"], found["gullibility"], found["pairs_per_core_minute"]) == (0, None, None)


def test_stuffed_titles_are_read_by_the_encoders_of_a_graders_tables(tmp_path: Path) -> None:
    data, encoder = write_small_world(tmp_path / "data"), save_tiny_encoder(tmp_path / "encoder", seed=0)
    encode_tables(
        data, tmp_path / "own", DashClipEncoder.load(encoder), inputs=InputConfig(modalities=("text",))
    )
    asked = ["train", data, tmp_path / "stack", "--aligned", f"own={tmp_path / 'own'}"]
    assert "no table is named 'other'" in call(*asked, "--encoder", f"other={encoder}", fails=True)
    assert "holds no encoder" in call(*asked, "--encoder", f"own={data}", fails=True)
    said = call(*asked, "--encoder", f"own={encoder}")
    assert "stuffed titles by the encoder of own, " in said
    assert "of them for the calibration" in said
    row = f"stack={tmp_path / 'stack'}"
    assert "vectors of their own in own" in call(
        "choose", data, tmp_path / "out", row, "--encoder", f"own={encoder}"
    )
    ce = ["train", data, tmp_path / "x", "--grader", "cross-encoder", "--start", tmp_path]
    assert "leave out --tables, --aligned and --encoder" in call(
        *ce, "--encoder", f"own={encoder}", fails=True
    )
