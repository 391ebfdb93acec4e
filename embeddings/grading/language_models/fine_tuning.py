"""People's grades as conversations to fine-tune a language model on.

A line of the files is {"messages": [system, user, assistant]}, what OpenAI and most other services and
trainers read. The question is that of the prompt, word for word: the tuned model is asked as it was taught.
Pairs of test queries are in neither file.
"""

import json
from pathlib import Path

from embeddings.catalog.holdout import TRAIN, VALIDATION
from embeddings.grading.language_models.prompt import Prompt
from embeddings.grading.pairs import GradedPairs, GradingError
from embeddings.grading.run import Price
from features.artifacts import ResultFile, atomic_folder, json_file_has

SUMMARY = "export.json"
_FILES = {TRAIN: "train", VALIDATION: "validation"}


class Exported(ResultFile):
    """`export.json`: what the files hold, by their names; tokens are a guess from characters."""

    prompt_sha: str
    fine_tuning_pairs: dict[str, int]
    tokens: dict[str, int]


def export_chats(graded: GradedPairs, prompt: Prompt, out: Path, *, price: Price | None = None) -> Exported:
    """Write the folder `out`: train.jsonl, validation.jsonl and export.json.

    Raises:
        GradingError: train or validation queries have no graded pair.
        FileExistsError: `out` holds something else.
    """
    price = price or Price()
    parts = {name: graded.of_role(role) for role, name in _FILES.items()}
    for name, part in parts.items():
        if not len(part):
            raise GradingError(
                f"no {name} query has a pair graded by people, so {name}.jsonl would be empty; "
                "give more grades"
            )
    labels = prompt.labels.in_order()
    tokens = dict.fromkeys(parts, 0)
    with atomic_folder(out, ours=_is_export) as temporary:
        for name, part in parts.items():
            with (temporary / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                rows = zip(part.pairs.queries, part.pairs.texts, part.grade_N.tolist(), strict=True)
                for query, text, grade in rows:
                    messages = prompt.messages(query, text)
                    messages.append({"role": "assistant", "content": labels[grade]})
                    file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                    tokens[name] += price.tokens(sum(len(message["content"]) for message in messages[:-1]))
        found = Exported(
            prompt_sha=prompt.sha256,
            fine_tuning_pairs={name: len(part) for name, part in parts.items()},
            tokens=tokens,
        )
        found.write(temporary / SUMMARY)
    return found


def _is_export(folder: Path) -> bool:
    return json_file_has(folder / SUMMARY, "fine_tuning_pairs")
