"""Grade many pairs in shards; what is graded stays graded, whenever the work is killed.

The folder is a table of relevance in the making: `relevance/part-NNNNNN.parquet` are whole files of grades,
each row with its key. The key is a hash of the grader, its prompt, the query, the product and its text, so
changed texts, prompts or graders are graded anew and nothing is graded twice.

Shapes: N pairs, C = 3 grades.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.graders import Grader
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.relevance.grades import PROBABILITIES
from features.artifacts import (
    BusyError,
    ResultFile,
    file_lock,
    json_file_has,
    refuse_foreign_folder,
    replaced_file,
)
from features.progress import Progress, silent

MANIFEST, RELEVANCE, LOCK = "grading.json", "relevance", ".lock"
SHARD_PAIRS = 2_000
#: What a model's grade has as its source in a table of relevance.
SOURCE = "llm"


class CostLimit(GradingError):
    """Grading stopped before it would cost more than allowed; what is graded stays."""


class RunManifest(ResultFile):
    """`grading.json`: who graded what so far."""

    format: Literal["grading-1"] = "grading-1"
    grader: str
    prompt_sha: str | None
    #: What was kept from the grader, or from the examples that it is shown; None if it is told no grade.
    holdout: HoldoutConfig | None = None
    pairs: int
    graded: int
    unanswered: int
    #: That the grader's server said it used; those of a shard that a kill lost are not among them.
    tokens: int
    #: What went wrong in the last call, in one sentence.
    remarks: str


@dataclass(frozen=True)
class Plan:
    """What a run would do: pairs in all, distinct ones still to grade, and what these would cost."""

    pairs: int
    done: int
    todo: int
    tokens: int
    cost: float


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, and a guess of the tokens of one pair."""

    per_million_tokens: float = 0.0
    characters_per_token: float = 4.0

    def tokens(self, characters: int) -> int:
        """Tokens of so many characters of prompt, and one of an answer."""
        return round(characters / self.characters_per_token) + 1

    def cost(self, tokens: int) -> float:
        """Money for so many tokens."""
        return tokens * self.per_million_tokens / 1e6


def keys_of(pairs: Pairs, grader: str, prompt_sha: str | None) -> list[str]:
    """The content key of each pair.

    >>> keys_of(Pairs(["tea"], ["Green tea"], pa.array([1])), "overlap", None)[0][:8]
    'a21e6274'
    """
    prefix = hashlib.sha256(json.dumps([grader, prompt_sha or ""]).encode())
    found = []
    for query, text, product in zip(pairs.queries, pairs.texts, pairs.product_ids.to_pylist(), strict=True):
        digest = prefix.copy()
        digest.update(json.dumps([query, product, text]).encode())
        found.append(digest.hexdigest()[:32])
    return found


def open_run(out: Path, grader: str, prompt_sha: str | None) -> set[str]:
    """Keys that are graded already in a folder that this grader may continue.

    Raises:
        GradingError: another grader or prompt began it.
        FileExistsError: it holds something else.
    """
    refuse_foreign_folder(out, ours=is_run)
    manifest = read_manifest(out)
    if manifest is not None and (manifest.grader, manifest.prompt_sha) != (grader, prompt_sha):
        raise GradingError(
            f"{out} was begun by grader {manifest.grader} with prompt {manifest.prompt_sha}, not by {grader} "
            f"with prompt {prompt_sha}; choose another folder"
        )
    return {key for part in parts_of(out) for key in pq.read_table(part, columns=["key"])["key"].to_pylist()}


def parts_of(out: Path) -> list[Path]:
    """The finished files of grades, in order."""
    return sorted((out / RELEVANCE).glob("part-*.parquet"))


def read_manifest(out: Path) -> RunManifest | None:
    """What `grading.json` of a run says; None before its first shard."""
    path = out / MANIFEST
    return RunManifest.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def is_run(folder: Path) -> bool:
    """Whether `grade run` wrote this folder, a killed first call included."""
    if json_file_has(folder / MANIFEST, "prompt_sha"):
        return True
    names = {child.name for child in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not name.startswith(".")} <= {RELEVANCE, "batch", "grading.log"}


def todo_rows(keys: Sequence[str], done: set[str]) -> npt.NDArray[np.int64]:
    """Positions of the keys that are not done, each key once."""
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return np.array(sorted(row for key, row in first.items() if key not in done), np.int64)


def plan_run(pairs: Pairs, out: Path, grader: Grader, *, price: Price, prompt_characters: int = 0) -> Plan:
    """What `run_grader` would do, without asking anything."""
    keys = keys_of(pairs, grader.name, grader.prompt_sha)
    done = open_run(out, grader.name, grader.prompt_sha)
    rows = todo_rows(keys, done)
    tokens = 0
    if grader.prompt_sha is not None:
        tokens = sum(price.tokens(_characters(pairs, row) + prompt_characters) for row in rows.tolist())
    graded = len(set(keys)) - len(rows)
    return Plan(len(keys), graded, len(rows), tokens, price.cost(tokens))


def run_grader(
    pairs: Pairs,
    out: Path,
    grader: Grader,
    *,
    price: Price | None = None,
    cost_limit: float | None = None,
    shard_pairs: int = SHARD_PAIRS,
    prompt_characters: int = 0,
    progress: Progress = silent,
) -> RunManifest:
    """Grade every pair that has no grade in `out` yet.

    A pair that the grader leaves unanswered (NaN) has no row; the next call asks for it again.

    Raises:
        BusyError: another process grades into `out`.
        CostLimit: the next shard would cost more than is left; finished shards stay.
        GradingError: another grader began `out`.
    """
    price = price or Price()
    open_run(out, grader.name, grader.prompt_sha)
    (out / RELEVANCE).mkdir(parents=True, exist_ok=True)
    busy = BusyError(f"{out} is being graded by another process; wait for it or choose another folder")
    with file_lock(out / LOCK, busy=busy):
        done = open_run(out, grader.name, grader.prompt_sha)
        keys = keys_of(pairs, grader.name, grader.prompt_sha)
        rows = todo_rows(keys, done)
        total = len(set(keys))
        manifest = write_manifest(out, grader, pairs=total, graded=total - len(rows))
        unanswered = 0
        for start in range(0, len(rows), shard_pairs):
            progress("grading", manifest.graded, total)
            part = rows[start : start + shard_pairs]
            if grader.prompt_sha is not None and cost_limit is not None:
                wanted = sum(
                    price.tokens(_characters(pairs, row) + prompt_characters) for row in part.tolist()
                )
                if price.cost(manifest.tokens + wanted) > cost_limit:
                    raise CostLimit(
                        f"stopped after {manifest.graded:,} of {total:,} pairs: the next {len(part):,} would "
                        f"cost about {price.cost(wanted):.2g}, and {price.cost(manifest.tokens):.2g} of "
                        f"{cost_limit:g} is spent; raise the limit to go on"
                    )
            chunk, tokens_before = pairs.take(part), grader.tokens
            probability_NC = grader.probabilities(chunk)
            answered = np.flatnonzero(~np.isnan(probability_NC).any(axis=1))
            unanswered += len(part) - len(answered)
            if len(answered):
                write_part(
                    out,
                    chunk.take(answered),
                    [keys[row] for row in part[answered].tolist()],
                    probability_NC[answered],
                    grader.grades(probability_NC[answered]),
                    grader=grader.name,
                    prompt_sha=grader.prompt_sha,
                )
            used = grader.tokens - tokens_before
            manifest = write_manifest(
                out, grader, more_graded=len(answered), unanswered=unanswered, more_tokens=used
            )
            if not len(answered):
                raise GradingError(
                    f"stopped after {manifest.graded:,} of {total:,} pairs: not one of {len(part):,} got "
                    f"an answer ({grader.remarks or 'no reason given'}); run the command again to go on"
                )
        progress("grading", manifest.graded, total)
        return manifest


def write_part(
    out: Path,
    pairs: Pairs,
    keys: Sequence[str],
    probability_NC: npt.NDArray[np.float64],
    grade_N: npt.NDArray[np.integer],
    *,
    grader: str,
    prompt_sha: str | None,
) -> Path:
    """Add one whole file of grades, under the next free number."""
    numbers = [int(path.stem.removeprefix("part-")) for path in parts_of(out)]
    path = out / RELEVANCE / f"part-{max(numbers, default=-1) + 1:06d}.parquet"
    columns: dict[str, pa.Array] = {
        "query": pa.array(pairs.queries, pa.string()),
        "product_id": pairs.product_ids,
        "grade": pa.array(grade_N, pa.int8()),
        "source": pa.array([SOURCE] * len(pairs), pa.string()),
    }
    for place, name in enumerate(PROBABILITIES):
        columns[name] = pa.array(probability_NC[:, place].astype(np.float32))
    columns["grader"] = pa.array([grader] * len(pairs), pa.string())
    columns["prompt_sha"] = pa.array([prompt_sha] * len(pairs), pa.string())
    columns["key"] = pa.array(list(keys), pa.string())
    with replaced_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
    return path


def write_manifest(
    out: Path,
    grader: Grader,
    *,
    pairs: int | None = None,
    graded: int | None = None,
    more_graded: int = 0,
    unanswered: int = 0,
    more_tokens: int = 0,
) -> RunManifest:
    """Write `grading.json`: what is given, and what it said before of the rest."""
    old = read_manifest(out)
    manifest = RunManifest(
        grader=grader.name,
        prompt_sha=grader.prompt_sha,
        holdout=grader.holdout,
        pairs=pairs if pairs is not None else (old.pairs if old else 0),
        graded=(graded if graded is not None else (old.graded if old else 0)) + more_graded,
        unanswered=unanswered,
        tokens=(old.tokens if old else 0) + more_tokens,
        remarks=grader.remarks,
    )
    manifest.write(out / MANIFEST)
    return manifest


def _characters(pairs: Pairs, row: int) -> int:
    return len(pairs.queries[row]) + len(pairs.texts[row])
