"""A grader that is a causal language model in a folder, asked through transformers without a server.

Nothing is generated and nothing parsed: each label is one token of the tokenizer, and the logits of the
three at the place of the answer give the probabilities; of its output layer the model keeps their rows alone.
What all prompts begin with (role, definitions, examples) is read once; its keys and values are copied to each
batch. The pairs of a batch are padded on the right, where a causal model cannot see the padding, and read at
their last true token.

Shapes: N pairs, B pairs of a batch, T tokens, H hidden width, C = 3 grades.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.classifiers import softmax
from embeddings.grading.language_models.prompt import Prompt
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.relevance.grades import GRADES
from features.artifacts import sha256_of

FloatArray = npt.NDArray[np.float64]

BATCH_SIZE = 32
#: How the model's turn may begin where a chat template says nothing of it; then the label follows.
_CHAT_OPENINGS = ("", "Grade:")


@dataclass(frozen=True, eq=False)
class PaddedTokens:
    """Tokens of B texts, padded on the right, and where each ends."""

    ids_BT: Tensor
    last_B: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], device: torch.device) -> "PaddedTokens":
        """Texts of at least one token."""
        ids_BT = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.int64)
        for row, ids in enumerate(texts):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
        last_B = torch.tensor([len(ids) - 1 for ids in texts])
        return cls(ids_BT.to(device), last_B.to(device))

    def label_logits(self, model: Any, start: Any) -> Tensor:
        """Logits [B, C] of the labels after each text, of a model that `keep_labels` has seen.

        Args:
            start: keys and values of what stands before each text, of one row or of B; `read_start` makes
                one. It is used up.
        """
        start.batch_repeat_interleave(len(self.ids_BT))
        logits_BTC = model(input_ids=self.ids_BT, past_key_values=start, use_cache=True).logits
        return logits_BTC[torch.arange(len(self.last_B), device=logits_BTC.device), self.last_B]


def read_start(model: Any, ids: Sequence[int]) -> Any:
    """Keys and values of a beginning that texts have in common; there may be no token of it.

    They have a gradient where the model's have one: the beginning of a batch is then read once, too.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    if ids:
        model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def keep_labels(model: Any, label_ids: Sequence[int]) -> None:
    """Leave only the labels' rows of the output layer: three logits a token, not tens of thousands.

    Raises:
        GradingError: the model has no such layer, or makes its logits in another way.
    """
    whole = model.get_output_embeddings()
    if not isinstance(whole, nn.Linear):
        raise GradingError(
            f"{type(model).__name__} has no linear output layer to read three labels of; serve it and name "
            "its --endpoint"
        )
    rows = torch.tensor(list(label_ids), device=whole.weight.device)
    few = nn.Linear(
        whole.in_features, len(rows), bias=whole.bias is not None, device="meta", dtype=whole.weight.dtype
    )
    for name, values in whole.named_parameters():
        setattr(few, name, nn.Parameter(values.detach()[rows].clone(), requires_grad=False))
    model.set_output_embeddings(few)


@dataclass(eq=False)
class LocalGrader:
    """A model in memory; `LocalGrader.load` opens a folder."""

    name: str
    model: Any
    tokenizer: Any
    prompt: Prompt
    batch_size: int = BATCH_SIZE
    problems: Counter[str] = field(default_factory=Counter)
    #: None of its tokens costs money.
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise GradingError(f"a batch must hold at least one pair, got {self.batch_size}")
        if getattr(self.model, "_is_stateful", False):
            raise GradingError(
                f"{self.name} keeps one state instead of keys and values of each token, so pairs cannot "
                "share the start of a prompt; serve it and name its --endpoint"
            )
        self._start = _start_of_texts(self.tokenizer)
        self._opening, label_ids = self._find_labels()
        keep_labels(self.model, label_ids)
        self._shared: list[int] = []
        self._cache: Any = None

    @classmethod
    def load(
        cls, folder: Path, prompt: Prompt, *, batch_size: int = BATCH_SIZE, device: str = "cpu"
    ) -> "LocalGrader":
        """Open a folder in transformers' layout: config.json, weights and tokenizer.

        The name is the folder's and a digest of what is in it: other weights are another grader.

        Raises:
            PretrainedError: it holds no causal language model, or leaves a weight random.
            GradingError: a label is not one token, or the device is not there.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from embeddings.encoders.pretrained import PretrainedError, first_line, load_pretrained

        if not (folder / "config.json").is_file():
            raise PretrainedError(
                f"{folder} must be a folder with config.json, weights and tokenizer of a causal language "
                "model"
            )
        try:
            config = AutoConfig.from_pretrained(folder)
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise PretrainedError(
                f"{folder} lacks a config or tokenizer that transformers can read: {first_line(error)}"
            ) from None
        model = load_pretrained(AutoModelForCausalLM, folder, config=config, dtype="auto")
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise GradingError(f"the model cannot be put on {device!r}: {first_line(error)}") from None
        name = f"lm-{folder.resolve().name}-{_digest(folder)[:12]}"
        return cls(name, model, tokenizer, prompt, batch_size)

    @property
    def prompt_sha(self) -> str:
        """Checksum of the prompt."""
        return self.prompt.sha256

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What was kept from the examples that it is shown."""
        return self.prompt.holdout

    @property
    def remarks(self) -> str:
        """What went wrong, in one sentence; empty if nothing did."""
        found = ", ".join(f"{name} {count:,}" for name, count in sorted(self.problems.items()))
        return f"pairs that the model could not answer: {found}" if found else ""

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """The most probable."""
        return probabilities_NC.argmax(axis=1).astype(np.int8)

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Probabilities [N, C], NaN for a prompt longer than the model reads."""
        found_NC = np.full((len(pairs), len(GRADES)), np.nan)
        if not len(pairs):
            return found_NC
        prompts = self.prompt_ids(pairs)
        longest = self.most_tokens or max(map(len, prompts))
        rows = sorted(
            (row for row, ids in enumerate(prompts) if len(ids) <= longest), key=lambda row: len(prompts[row])
        )
        if len(rows) < len(prompts):
            self.problems[f"longer than its {longest:,} tokens"] += len(prompts) - len(rows)
        if not rows:
            return found_NC
        with torch.inference_mode():
            self._share([prompts[row] for row in rows])
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                suffixes = [prompts[row][len(self._shared) :] for row in part]
                found_NC[part] = softmax(self._label_logits(suffixes))
        if broken := int(np.isnan(found_NC[rows]).any(axis=1).sum()):
            self.problems["no number"] += broken
        return found_NC

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest prompt that the model reads, if it says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def prompt_ids(self, pairs: Pairs) -> list[list[int]]:
        """Tokens of all that the model reads before it answers, for each pair."""
        return self._ids([self._text(*pair) for pair in zip(pairs.queries, pairs.texts, strict=True)])

    def _share(self, prompts: list[list[int]]) -> None:
        """Read the beginning that these prompts have in common with all before, unless it has been read."""
        low = prompts[0]
        common = shared_start(prompts)
        if self._cache is not None:
            common = _common(low, self._shared, most=common)
            if common == len(self._shared):
                return
        self._shared, self._cache = low[:common], read_start(self.model, low[:common])

    def _label_logits(self, suffixes: list[list[int]]) -> FloatArray:
        """Logits [B, C] of the labels after each prompt, given what follows the shared beginning."""
        read = PaddedTokens.of(suffixes, self.model.device)
        logits_BC = read.label_logits(self.model, copy.deepcopy(self._cache))
        return np.asarray(logits_BC.float().cpu().numpy(), np.float64)

    def _text(self, query: str, text: str) -> str:
        """All that the model reads before it answers."""
        return self._rendered(query, text) + self._opening

    def _rendered(self, query: str, text: str) -> str:
        system, user = (message["content"] for message in self.prompt.messages(query, text))
        if not self.tokenizer.chat_template:
            return f"{system}\n\n{user}"
        failed: Exception | None = None
        for messages in (
            [{"role": "system", "content": system}, {"role": "user", "content": user}],
            # Some templates know no system.
            [{"role": "user", "content": f"{system}\n\n{user}"}],
        ):
            try:
                # A model that may think first is told not to; other templates ignore that.
                return str(
                    self.tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
                    )
                )
            except Exception as error:  # whatever the template raises
                failed = failed or error
        raise GradingError(f"the chat template of {self.name} cannot be filled: {failed}")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of whole texts; a chat template writes its first token itself."""
        start = [] if self.tokenizer.chat_template else self._start
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*start, *ids] for ids in found]

    def _find_labels(self) -> tuple[str, list[int]]:
        """How the answer begins, and the one token of each label after that.

        Raises:
            GradingError: a label is not one token, or not one of its own.
        """
        labels = self.prompt.labels.in_order()
        rendered = self._rendered("query", "product")
        refused = ""
        for opening in _CHAT_OPENINGS if self.tokenizer.chat_template else ("",):
            before = rendered + opening
            space = "" if before[-1:].isspace() else " "
            asked, *answered = self._ids([before, *(before + space + label.strip() for label in labels)])
            for label, ids in zip(labels, answered, strict=True):
                unknown = bool(ids) and ids[-1] == self.tokenizer.unk_token_id
                if ids[:-1] != asked or unknown:
                    count = len(ids) - _common(ids, asked, most=len(ids))
                    refused = refused or (
                        f"the label {label!r} is {'unknown' if unknown else f'{count} tokens'} to the "
                        f"tokenizer of {self.name}; write another word of one token under [labels] of the "
                        "prompt"
                    )
                    break
            else:
                label_ids = [ids[-1] for ids in answered]
                if len(set(label_ids)) == len(labels):
                    return opening, label_ids
                refused = refused or f"two labels are the same token to the tokenizer of {self.name}"
        raise GradingError(refused)


def _start_of_texts(tokenizer: Any) -> list[int]:
    """The token that the tokenizer puts before a text, if it does."""
    start = tokenizer.bos_token_id
    return [start] if start is not None and tokenizer("a")["input_ids"][:1] == [start] else []


def shared_start(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; at least one of each is left, to answer at.

    >>> shared_start([[1, 2, 3], [1, 2, 4, 5]]), shared_start([[1, 2], [1, 2, 3]])
    (2, 1)
    """
    return _common(min(prompts), max(prompts), most=min(map(len, prompts)) - 1)


def _common(one: Sequence[int], other: Sequence[int], *, most: int) -> int:
    """How many tokens two sequences begin with in common, at most so many.

    >>> _common([1, 2, 3], [1, 2, 4, 5], most=9), _common([1, 2, 3], [1, 2, 4, 5], most=1)
    (2, 1)
    """
    for place, (left, right) in enumerate(zip(one[:most], other[:most], strict=False)):
        if left != right:
            return place
    return min(len(one), len(other), most)


def _digest(folder: Path) -> str:
    """Of all files that lie in the folder, hidden ones and notes left out."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return whole.hexdigest()
