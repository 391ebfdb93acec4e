"""Requests as a file for a batch service (OpenAI Batch; `vllm run-batch` reads the same), and its results.

A line's `custom_id` is the content key of its pair, so results may come in any order, in part, or twice. What
is refused, unparsable or missing goes into a further file, which asks for those alone.

Shapes: N pairs, C = 3 grades.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.language_models.prompt import Prompt, probabilities_of, tokens_of
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import SHARD_PAIRS, keys_of, open_run, todo_rows, write_manifest, write_part
from features.artifacts import BusyError, file_lock, replaced_file

#: Limits of OpenAI's batches.
MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000
BATCH, ASKED = "batch", "asked.parquet"


@dataclass(frozen=True, eq=False)
class BatchGrader:
    """Stands for the model that a batch service asks; it answers nothing by itself."""

    model: str
    prompt: Prompt
    tokens: int = 0
    remarks: str = ""

    @property
    def name(self) -> str:
        """The model, as if asked by an endpoint: the same model, the same grader."""
        return f"endpoint-{self.model}"

    @property
    def prompt_sha(self) -> str:
        """Checksum of the prompt."""
        return self.prompt.sha256

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What was kept from the examples that it is shown."""
        return self.prompt.holdout

    def probabilities(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        """Nothing: its answers come by file."""
        raise GradingError("a batch file is answered by its service; then `dashclip grade collect` reads it")

    def grades(self, probabilities_NC: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
        """The most probable."""
        return probabilities_NC.argmax(axis=1).astype(np.int8)


@dataclass(frozen=True)
class Collected:
    """What `collect` met: new grades, troubles by name, and the file that asks for the rest."""

    graded: int
    problems: dict[str, int]
    still_missing: int
    retry: tuple[Path, ...]


def write_batch(pairs: Pairs, out: Path, grader: BatchGrader) -> tuple[list[Path], int]:
    """Write the requests of all pairs without a grade in `out`; the files and how many requests they hold.

    Raises:
        GradingError: another grader began `out`.
    """
    keys = keys_of(pairs, grader.name, grader.prompt_sha)
    rows = todo_rows(keys, open_run(out, grader.name, grader.prompt_sha))
    (out / BATCH).mkdir(parents=True, exist_ok=True)
    write_manifest(out, grader, pairs=len(set(keys)), graded=len(set(keys)) - len(rows))
    asked = pairs.take(rows)
    columns: dict[str, pa.Array] = {
        "key": pa.array([keys[row] for row in rows.tolist()], pa.string()),
        "query": pa.array(asked.queries, pa.string()),
        "text": pa.array(asked.texts, pa.string()),
        "product_id": asked.product_ids,
    }
    with replaced_file(out / BATCH / ASKED) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
    return _write_requests(out, asked, columns["key"].to_pylist(), grader), len(rows)


def collect(out: Path, results: list[Path], grader: BatchGrader) -> Collected:
    """Add the answers of result files to the grades; may be repeated with the same or more files.

    Raises:
        GradingError: `out` asked for nothing, or a result file cannot be read.
    """
    path = out / BATCH / ASKED
    if not path.exists():
        raise GradingError(
            f"{out} has asked for nothing yet; `dashclip grade run … --batch-file` writes requests"
        )
    busy = BusyError(f"{out} is being graded by another process; wait for it")
    with file_lock(out / ".lock", busy=busy):
        content = pq.read_table(path)
        keys = content["key"].to_pylist()
        row_of = {key: row for row, key in enumerate(keys)}
        pairs = Pairs(
            content["query"].to_pylist(), content["text"].to_pylist(), content["product_id"].combine_chunks()
        )
        done = open_run(out, grader.name, grader.prompt_sha)
        before = len(done & row_of.keys())
        problems: Counter[str] = Counter()
        found: dict[int, npt.NDArray[np.float64]] = {}
        tokens = 0
        for line in _lines(results, problems):
            row = row_of.get(str(line.get("custom_id")))
            if row is None or keys[row] in done or row in found:
                problems["unknown" if row is None else "repeated"] += 1
                continue
            body = (line.get("response") or {}).get("body")
            if line.get("error") or body is None or (line["response"].get("status_code") or 200) != 200:
                problems["failed"] += 1
                continue
            tokens += tokens_of(body)
            answer_C, problem = probabilities_of(body, grader.prompt)
            if problem:
                problems[problem] += 1
            if answer_C is not None:
                found[row] = answer_C
        rows = np.array(sorted(found), np.int64)
        for start in range(0, len(rows), SHARD_PAIRS):
            part = rows[start : start + SHARD_PAIRS]
            answer_NC = np.array([found[row] for row in part.tolist()])
            write_part(
                out,
                pairs.take(part),
                [keys[row] for row in part.tolist()],
                answer_NC,
                grader.grades(answer_NC),
                grader=grader.name,
                prompt_sha=grader.prompt_sha,
            )
        missing = np.array(
            [row for row, key in enumerate(keys) if key not in done and row not in found], np.int64
        )
        unheard = len(missing) - sum(problems[name] for name in ("failed", "refused", "unparsable"))
        if unheard > 0:
            problems["missing"] = unheard
        write_manifest(out, grader, more_graded=len(rows), unanswered=len(missing), more_tokens=tokens)
        retry = _write_requests(out, pairs.take(missing), [keys[row] for row in missing.tolist()], grader)
        return Collected(before + len(rows), dict(problems), len(missing), tuple(retry))


def _write_requests(out: Path, pairs: Pairs, keys: list[str], grader: BatchGrader) -> list[Path]:
    """Files of requests in place of older ones, none above the limits of a batch."""
    for old in sorted((out / BATCH).glob("requests-*.jsonl")):
        old.unlink()
    lines = (
        json.dumps(
            {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": grader.prompt.request(query, text, model=grader.model),
            },
            ensure_ascii=False,
        )
        for key, query, text in zip(keys, pairs.queries, pairs.texts, strict=True)
    )
    written: list[Path] = []
    block: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode()) + 1
        if block and (len(block) >= MAX_REQUESTS or size + length > MAX_BYTES):
            written.append(_write_lines(out, len(written), block))
            block, size = [], 0
        block.append(line)
        size += length
    return [*written, _write_lines(out, len(written), block)] if block else written


def _write_lines(out: Path, number: int, lines: list[str]) -> Path:
    path = out / BATCH / f"requests-{number:04d}.jsonl"
    with replaced_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _lines(results: list[Path], problems: Counter[str]) -> Iterator[dict[str, Any]]:
    for path in results:
        try:
            file = path.open(encoding="utf-8")
        except OSError as error:
            raise GradingError(f"{path} cannot be read: {error.strerror}") from None
        with file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                except ValueError:
                    content = None
                if isinstance(content, dict):
                    yield content
                else:
                    problems["broken_line"] += 1
