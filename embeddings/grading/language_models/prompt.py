"""The question to a language model, as a versioned file, and what an answer means.

What never changes stands first (role, definitions, examples) and query and product last, so that a server
that caches prefixes reads the long part once; examples chosen for a query stand right before it. One token
answers: its log probabilities are the grade's.

Shapes: C = 3 grades.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.pairs import GradingError
from embeddings.relevance.grades import GRADES
from features.artifacts import StrictModel

FloatArray = npt.NDArray[np.float64]
GradeName = Literal["irrelevant", "moderate", "high"]
Text = Annotated[str, Field(min_length=1)]

#: Alternatives asked for beside the answer; servers allow 20 at most.
TOP_LOGPROBS = 10
#: Probability of a grade that is not among the alternatives.
_UNSEEN = 1e-6
#: With less probability on all labels together the model does not do what it is asked.
_LEAST_ON_LABELS = 0.5

TEMPLATE = """\
# The prompt of a grader. Its checksum stands in every grade, so a changed prompt grades anew.
version = "1"
role = "You judge how relevant a product is to what a shopper searched for."

# So many pairs that people graded, of queries like that of the pair, right before it:
# examples_from = "nearest"
# nearest_count = 4

[definitions]
high = "The product is what was searched for: every important demand of the query is met."
moderate = "The product is a near miss: a substitute, an accessory, or some demand is not met."
irrelevant = "The product is something else. Words in common alone do not make it relevant."

# One word for each grade, told apart by its first letters: the model answers with the first token of one.
[labels]
high = "high"
moderate = "moderate"
irrelevant = "irrelevant"

# Examples, as many as you like:
# [[examples]]
# query = "oat milk"
# text = "Barista Oat Drink 1 l"
# grade = "high"
"""


class Labels(StrictModel):
    """A word, or a sentence, for each grade."""

    #: For grade 0.
    irrelevant: Text
    #: For grade 1.
    moderate: Text
    #: For grade 2.
    high: Text

    def in_order(self) -> tuple[str, str, str]:
        """Those of grade 0, 1 and 2."""
        return self.irrelevant, self.moderate, self.high


class Example(StrictModel):
    """A pair with its grade that the model is shown."""

    #: What was searched.
    query: str
    #: What the product says.
    text: str
    #: The right grade: irrelevant, moderate or high.
    grade: GradeName


class ExamplePool(Protocol):
    """Where the nearest examples of a query come from."""

    @property
    def sha256(self) -> str:
        """Checksum of all examples there are."""

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What the queries of the examples were kept apart from."""

    @property
    def characters(self) -> int:
        """Of the examples of one pair, about."""

    def of(self, query: str) -> tuple[Example, ...]:
        """Those of a query, the nearest last."""


class Prompt(StrictModel):
    """A prompt file."""

    #: A name of yours for this wording; it is recorded with every grade.
    version: Text
    #: What the model is told that it is.
    role: Text
    definitions: Labels
    labels: Labels = Labels(irrelevant="irrelevant", moderate="moderate", high="high")
    #: Pairs with their grades that the model is shown.
    examples: tuple[Example, ...] = ()
    #: A longer text of a product is cut off.
    max_text_characters: Annotated[int, Field(ge=1)] = 600
    #: "nearest" adds examples to each pair, which `with_nearest` brings.
    examples_from: Literal["prompt", "nearest"] = "prompt"
    #: How many nearest examples each pair gets.
    nearest_count: Annotated[int, Field(ge=1, le=64)] = 4
    _pool: ExamplePool | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _labels_differ_from_the_start(self) -> Self:
        starts = [label.strip().lower()[:1] for label in self.labels.in_order()]
        if len(set(starts)) < len(GRADES):
            raise ValueError(
                "the labels must start with three different letters or digits, as one token answers; got "
                + ", ".join(map(repr, self.labels.in_order()))
            )
        return self

    @classmethod
    def read(cls, path: Path) -> "Prompt":
        """The prompt of a TOML file.

        Raises:
            GradingError: it is no prompt; the message names the key.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            raise GradingError(f"{path}, {key}: {first['msg']}; correct it there") from None
        except (OSError, ValueError) as error:
            raise GradingError(f"{path} cannot be read as a prompt: {error}") from None

    @property
    def sha256(self) -> str:
        """Checksum of what it says and may add as examples; comments and the order of keys do not count."""
        said = self.model_dump(mode="json")
        if self.examples_from == "prompt":
            # What is not asked does not count: a prompt of before this setting keeps its checksum.
            del said["examples_from"], said["nearest_count"]
        elif self._pool is not None:
            said["pool"] = self._pool.sha256
        content = json.dumps(said, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def holdout(self) -> HoldoutConfig | None:
        """That of the nearest examples; None without any."""
        return None if self._pool is None else self._pool.holdout

    def with_nearest(self, pool: ExamplePool) -> "Prompt":
        """This prompt with the examples that it chooses from."""
        found = self.model_copy()
        found._pool = pool
        return found

    def shared_characters(self) -> int:
        """Characters asked with each pair beside its own, about."""
        return len(self.system()) + (self._pool.characters if self._pool is not None else 0)

    def system(self) -> str:
        """The part that is the same for all pairs."""
        lines = [self.role, "", "The grades:"]
        for name, label in zip(reversed(GRADES), reversed(self.labels.in_order()), strict=True):
            lines.append(f"- {label}: {getattr(self.definitions, name)}")
        for example in self.examples:
            lines += ["", *self._graded(example)]
        return "\n".join([*lines, "", f"Answer with one word: {', '.join(self.labels.in_order())}."])

    def messages(self, query: str, text: str) -> list[dict[str, str]]:
        """The conversation that asks for one grade.

        Raises:
            GradingError: it adds the nearest examples and has none to choose from.
        """
        lines: list[str] = []
        if self.examples_from == "nearest":
            if self._pool is None:
                raise GradingError(
                    'the prompt says examples_from = "nearest", so it needs pairs to choose from; name the '
                    "data folder that people graded by --examples"
                )
            for example in self._pool.of(query):
                lines += [*self._graded(example), ""]
        user = "\n".join([*lines, *self._pair(query, text), "Grade:"])
        return [{"role": "system", "content": self.system()}, {"role": "user", "content": user}]

    def request(self, query: str, text: str, *, model: str) -> dict[str, Any]:
        """The body of a chat completion."""
        return {
            "model": model,
            "messages": self.messages(query, text),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }

    def grade_of(self, token: str) -> int | None:
        """The grade that a token begins to say: " ir" is irrelevant; None for anything else.

        A single letter must have the label's case: "I" begins a sentence, not "irrelevant".
        """
        start = token.strip()
        if not start:
            return None
        for grade, label in enumerate(self.labels.in_order()):
            word = label.strip()
            if len(start) == 1 < len(word) and start != word[0]:
                continue
            if word.lower().startswith(start.lower()) or start.lower().startswith(word.lower()):
                return grade
        return None

    def _graded(self, example: Example) -> list[str]:
        answer = self.labels.in_order()[GRADES.index(example.grade)]
        return [*self._pair(example.query, example.text), f"Grade: {answer}"]

    def _pair(self, query: str, text: str) -> list[str]:
        return [f"Query: {query}", f"Product: {text[: self.max_text_characters]}"]


def probabilities_of(body: Any, prompt: Prompt) -> tuple[FloatArray | None, str]:
    """Probabilities [C] that a chat completion gives, or None and why: "refused", "unparsable".

    Without log probabilities the word answered gets all, which is said as "without_logprobs". Where words
    that are no label are more probable than all labels, that is said as "other_words_likelier".
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return None, "refused"
        tokens = ((choice.get("logprobs") or {}).get("content") or [None])[0]
        found_C = np.zeros(len(GRADES))
        alternatives = [] if tokens is None else tokens.get("top_logprobs") or [tokens]
        for alternative in alternatives:
            grade = prompt.grade_of(str(alternative["token"]))
            logprob = float(alternative["logprob"])
            if grade is not None and not math.isnan(logprob):
                found_C[grade] += math.exp(min(logprob, 0.0))
        if found_C.sum() > 0:
            problem = "" if found_C.sum() >= _LEAST_ON_LABELS else "other_words_likelier"
            found_C = found_C.clip(_UNSEEN)
            return found_C / found_C.sum(), problem
        grade = None if tokens is not None else prompt.grade_of(str(content or ""))
        if grade is None:
            return None, "unparsable"
        return np.eye(len(GRADES))[grade], "without_logprobs"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None, "unparsable"


def tokens_of(body: Any) -> int:
    """Tokens that a server says it has used; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, Mapping) else None
    total = usage.get("total_tokens") if isinstance(usage, Mapping) else 0
    return total if isinstance(total, int) and total > 0 else 0
