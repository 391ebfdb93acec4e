"""Which queries and products are kept away from training, decided by a hash of each text alone.

The share of a text in [0, 1) is blake2b of its kind, the seed and the text, of a query its `query_key`. A
role therefore depends neither on the other rows nor on their order: data may grow, and no test query ever
turns into a training query.

Shapes: Q queries, P products.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from embeddings.catalog.groups import connected_groups
from embeddings.catalog.tokenizer import TokenBatch, words_of
from features.artifacts import StrictModel

TRAIN, VALIDATION, TEST = 0, 1, 2

Share = Annotated[float, Field(ge=0, lt=1)]


class HoldoutConfig(StrictModel):
    """Shares of distinct queries and of products that are held out; the seed chooses which."""

    #: Of distinct queries: those that retrieval is measured on.
    test_query_share: Share = 0.1
    #: Of distinct queries: those that decide when stage 2 stops.
    validation_query_share: Share = 0.05
    #: Of products: those that no stage sees.
    test_product_share: Share = 0.05
    #: Of the other products: those that every stage is measured on and none is trained on, warm-ups included
    #: (`validation_products`), a share and a maximum of each kind.
    validation_product_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    #: At most so many products are kept aside to measure stages on.
    most_validation_products: Annotated[int, Field(ge=2)] = 2_000
    #: Keep aside products of any group rather than whole groups of lookalikes: right where few titles stand
    #: for many products, as names of classes do.
    validation_within_groups: bool = False
    #: Chooses which are held out; keep it, or what was held out is trained on.
    seed: Annotated[int, Field(ge=0)] = 0
    #: "intent" keeps queries that ask for the same thing on one side; "spelling" parts them, as releases
    #: before did, and lets a test query's plural or misspelling be trained on.
    by: Literal["intent", "spelling"] = "intent"

    @model_validator(mode="after")
    def _queries_are_left_to_train_on(self) -> Self:
        held_out = self.test_query_share + self.validation_query_share
        if held_out >= 1:
            raise ValueError(
                f"test_query_share + validation_query_share must be below 1, got {held_out:g}; "
                "no query would be left to train on"
            )
        return self

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> Self | None:
        """What a training wrote down; one without `by` is from before intents counted, when spellings did."""
        return None if record is None else cls.model_validate({"by": "spelling"} | dict(record))


def recorded_holdout(trained_on: Mapping[str, Any] | None) -> HoldoutConfig | None:
    """What was kept from an encoder, by its own record (`DashClipEncoder.trained_on`), the last stage first.

    None: no stage left a record.
    """
    found = None
    while trained_on and found is None:
        found = trained_on.get("settings", {}).get("inputs", {}).get("holdout")
        trained_on = trained_on.get("previous")
    return HoldoutConfig.of_record(found)


def agreed_holdout(
    recorded: Mapping[str, HoldoutConfig | None],
    asked: HoldoutConfig | None = None,
    *,
    otherwise: str = "compare them one by one",
) -> HoldoutConfig:
    """The hold-out that all of `recorded`, by name, were trained with; `asked` where none has a record.

    Judged by another, an encoder is asked for queries that it was trained on. Without either, the default.

    Args:
        otherwise: what to do where two differ.

    Raises:
        ValueError: two were trained with different ones, or with another than `asked`.
    """
    known = {name: holdout for name, holdout in recorded.items() if holdout is not None}
    if not known:
        return asked or HoldoutConfig()
    first, agreed = next(iter(known.items()))
    for name, holdout in known.items():
        if holdout != agreed:
            raise ValueError(
                f"what is compared must have been trained with one hold-out, but {name} was trained with "
                f"{_differing(holdout, agreed)}, {first} with {_differing(agreed, holdout)}; "
                f"{otherwise}"
            )
    if asked is not None and asked != agreed:
        raise ValueError(
            f"{first} must be measured on what was kept from its training, which was by "
            f"{_differing(agreed, asked)}, but the config says {_differing(asked, agreed)}; give the config "
            "that it was trained with, or none: its record says what was held out"
        )
    return agreed


def _differing(one: HoldoutConfig, other: HoldoutConfig) -> str:
    """What of a hold-out another has otherwise, as "seed = 1, by = spelling"."""
    mine, its = one.model_dump(), other.model_dump()
    return ", ".join(f"{key} = {value}" for key, value in mine.items() if value != its[key])


def query_key(text: str) -> str:
    """What queries are told apart by: those of one key are one query, with one role.

    Queries that every encoder sees alike (`words_of`) have one key, and so have those that NFKC or case
    folding makes alike. Spaces stand only where words need them, so a plain lower-case query is its own key.

    >>> {query_key(text) for text in ("Crème-brûlée", "creme - brulee", "CRE\u00adME-BRULEE")}
    {'creme-brulee'}
    """
    words = words_of(text)
    spaced = " ".join(words)
    folded = unicodedata.normalize("NFKC", spaced).casefold()
    key = ""
    for word in words if folded == spaced else words_of(folded):
        parted = not key or _stands_alone(key[-1]) or _stands_alone(word[0])
        key += word if parted else f" {word}"
    return key


def query_roles(
    queries: pa.Array | Iterable[str],
    config: HoldoutConfig,
    *,
    intents: Sequence[str | None] | None = None,
) -> npt.NDArray[np.int8]:
    """Role of each query: 0 train, 1 validation, 2 test; queries of one `query_key` have one role.

    With `intents` the hash is that of the intent, so all queries of one have one role; a query without one
    goes by its key. Test takes the low end of the hash and validation the high end, so a larger share of
    either only ever takes from training.

    Raises:
        ValueError: a query is null.
    """
    keys = [query_key(text) for text in _texts(queries, "queries")]
    if intents is not None:
        keys = [key if intent is None else f"\0{intent}" for key, intent in zip(keys, intents, strict=True)]
    share_Q = _hash_shares("query", keys, config.seed)
    roles_Q = np.full(len(share_Q), TRAIN, np.int8)
    roles_Q[share_Q >= 1 - config.validation_query_share] = VALIDATION
    roles_Q[share_Q < config.test_query_share] = TEST
    return roles_Q


def query_groups(
    queries: pa.Array | Iterable[str],
    query_tokens: Callable[[Sequence[str]], TokenBatch] | None = None,
) -> npt.NDArray[np.int64]:
    """The group of each query [Q]: the position of the first query that is the same, through any chain.

    Queries of one `query_key` are the same. With an encoder's `query_tokens` so are those of equal token
    ids: beyond the spelling that holds for words outside the vocabulary, and for long queries that differ
    after the cut.

    Raises:
        ValueError: a query is null.
    """
    texts = _texts(queries, "queries")
    keys: list[tuple[int, Hashable]] = [(row, query_key(text)) for row, text in enumerate(texts)]
    if query_tokens is not None:
        ids_QT = query_tokens(texts).ids_BT.numpy()
        keys += [(row, ids_T.tobytes()) for row, ids_T in enumerate(ids_QT)]
    return connected_groups(len(texts), keys)


def roles_of_groups(roles_Q: npt.NDArray[np.int8], group_Q: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """The role of each query when a whole group has that of its most held-out member: test before validation.

    An encoder that cannot tell a training query from a test query must not be trained on it.
    """
    strictest_Q = np.full(len(roles_Q), TRAIN, np.int8)
    np.maximum.at(strictest_Q, group_Q, roles_Q)
    return strictest_Q[group_Q]


def product_roles(ids: pa.Array | Iterable[int | str], config: HoldoutConfig) -> npt.NDArray[np.int8]:
    """Role of each product id: 0 train, 2 test. The integer 7 and the string "7" have one role.

    Raises:
        ValueError: an id is null.
    """
    share_P = _hash_shares("product", _texts(ids, "product ids"), config.seed)
    return np.where(share_P < config.test_product_share, TEST, TRAIN).astype(np.int8)


def validation_products(
    ids: pa.Array | Iterable[int | str],
    *,
    usable_P: npt.NDArray[np.bool_],
    kind_P: npt.NDArray[np.integer],
    group_P: npt.NDArray[np.int64],
    config: HoldoutConfig,
) -> npt.NDArray[np.bool_]:
    """Which products every stage is measured on, so that no stage may be trained on them.

    Of each kind the share of the config is taken, by a hash of the ids, and at least two groups where there
    are four; then whole groups of lookalikes, whatever the kind of their members.

    Args:
        usable_P: products that may be chosen; those for tests may not.
        kind_P: what a product has, so that each stage finds some that it can be measured on.
        group_P: lookalikes have one number.

    Raises:
        ValueError: an id is null.
    """
    names = _texts(ids, "product ids")
    if config.validation_within_groups:
        group_P = np.arange(len(names))
    # A group is called by the least of its ids: that depends on no order, and large groups are no likelier.
    least: dict[int, str] = {}
    for group, name in zip(group_P[usable_P].tolist(), np.array(names)[usable_P].tolist(), strict=True):
        least[group] = min(name, least.get(group, name))
    share_G = _hash_shares("validation product", least.values(), config.seed)
    share_of = dict(zip(least, share_G.tolist(), strict=True))
    chosen: list[int] = []
    for kind in np.unique(kind_P[usable_P]).tolist():
        groups, sizes = np.unique(group_P[usable_P & (kind_P == kind)], return_counts=True)
        order = np.argsort([share_of[group] for group in groups.tolist()], kind="stable")
        wanted = min(config.most_validation_products, round(config.validation_product_share * sizes.sum()))
        before = np.cumsum(sizes[order]) - sizes[order]
        enough = int((before < wanted).sum())
        chosen += groups[order[: max(enough, 2) if sizes.sum() >= 4 else enough]].tolist()
    return usable_P & np.isin(group_P, chosen)


def _hash_shares(
    kind: Literal["query", "product", "validation product"], texts: Iterable[str], seed: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), uniform over texts; queries and products of one spelling are independent."""
    prefix = hashlib.blake2b(f"{kind}\0{seed}\0".encode(), digest_size=8)
    numbers = []
    for text in texts:
        digest = prefix.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        # 53 bits: more would be rounded, and up to 1.0 at the top.
        numbers.append(int.from_bytes(digest.digest(), "big") >> 11)
    return np.array(numbers, np.float64) / 2.0**53


@cache
def _stands_alone(character: str) -> bool:
    """Whether a character is a word of its own, wherever it stands: punctuation, symbols, Chinese."""
    return len(words_of(f"a{character}a")) > 1


def _texts(values: pa.Array | Iterable[int | str], name: str) -> list[str]:
    found = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else list(values)
    if None in found:
        raise ValueError(f"{name} must not be null, but number {found.index(None)} is; drop that row")
    return [str(value) for value in found]
