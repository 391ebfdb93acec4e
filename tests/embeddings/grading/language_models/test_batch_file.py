"""Requests for a batch service, and what its results become."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.grading.language_models import batch_file
from embeddings.grading.language_models.batch_file import BatchGrader, collect, write_batch
from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import parts_of
from tests.embeddings.grading.language_models.chat_server import answer


def grader(folder: Path) -> BatchGrader:
    (folder / "prompt.toml").write_text(TEMPLATE)
    return BatchGrader("m", Prompt.read(folder / "prompt.toml"))


def some_pairs(count: int) -> Pairs:
    return Pairs([f"q{n}" for n in range(count)], [f"text {n}" for n in range(count)], pa.array(range(count)))


def requests_of(paths: list[Path] | tuple[Path, ...]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def result(request: dict[str, Any], body: bytes | None, *, status: int = 200) -> str:
    response = None if body is None else {"status_code": status, "body": json.loads(body)}
    return json.dumps({"custom_id": request["custom_id"], "response": response, "error": None})


def graded(out: Path) -> dict[str, int]:
    rows = [row for part in parts_of(out) for row in pq.read_table(part).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["query"]: row["grade"] for row in rows}


def test_only_what_lacks_an_answer_is_asked_again_until_all_have_one(tmp_path: Path) -> None:
    out, who = tmp_path / "out", grader(tmp_path)
    files, count = write_batch(some_pairs(7), out, who)
    asked = requests_of(files)
    assert count == len(asked) == 7
    assert asked[0]["url"] == "/v1/chat/completions"
    assert asked[0]["body"]["max_tokens"] == 1
    lines = [
        result(asked[3], answer({"high": 0.8})),
        result(asked[0], answer({"ir": 0.9, "high": 0.1})),
        result(asked[1], answer({}, refusal="no")),
        result(asked[2], answer({"Sure": 0.9})),
        result(asked[4], answer({"high": 0.9}), status=500),
        result(asked[0], answer({"high": 0.9})),
        json.dumps({"custom_id": "stranger", "response": None, "error": None}),
        '{"custom_id": "half',
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    found = collect(out, [tmp_path / "results.jsonl"], who)
    assert graded(out) == {"q0": 0, "q3": 2}
    assert (found.graded, found.still_missing) == (2, 5)
    assert found.problems == {
        "refused": 1, "unparsable": 1, "failed": 1, "repeated": 1, "unknown": 1, "broken_line": 1,
        "missing": 2,
    }  # fmt: skip
    again = requests_of(found.retry)
    assert [line["custom_id"] for line in again] == [asked[n]["custom_id"] for n in (1, 2, 4, 5, 6)]
    (tmp_path / "more.jsonl").write_text("\n".join(result(line, answer({"mod": 0.9})) for line in again))
    found = collect(out, [tmp_path / "results.jsonl", tmp_path / "more.jsonl"], who)
    assert (found.graded, found.still_missing, found.retry) == (7, 0, ())
    assert graded(out) == {f"q{n}": {0: 0, 3: 2}.get(n, 1) for n in range(7)}


def test_files_keep_the_limits_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_file, "MAX_REQUESTS", 3)
    files, _ = write_batch(some_pairs(7), tmp_path / "out", grader(tmp_path))
    assert [len(requests_of([path])) for path in files] == [3, 3, 1]


def test_pairs_of_before_are_not_requested(tmp_path: Path) -> None:
    out, who = tmp_path / "out", grader(tmp_path)
    asked = requests_of(write_batch(some_pairs(3), out, who)[0])
    (tmp_path / "results.jsonl").write_text(result(asked[1], answer({"high": 0.8})))
    collect(out, [tmp_path / "results.jsonl"], who)
    files, count = write_batch(some_pairs(4), out, who)
    assert count == 3
    assert len(requests_of(files)) == 3


def test_collecting_what_was_never_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradingError, match="asked for nothing"):
        collect(tmp_path / "out", [], grader(tmp_path))
