"""What shoppers type, and what they mean by it.

A query's intent is a set of product types plus facets (brand, variety, flags) that the product should
have. Shapes: Q queries, T types.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.world.assortment import FLAGS, USE_CASES
from experiments.marketplace.world.catalog import BoolArray, Catalog, FloatArray, IntArray, flag_names

KINDS = ("head", "brand", "attribute", "use case", "misspelt")
#: Chance that the next query of a type is of each kind (the head queries are given).
_KIND_SHARES = {"brand": 0.36, "attribute": 0.44, "use case": 0.06, "misspelt": 0.14}
#: Share of a type's searches that go to its head queries; the others share the rest by Zipf's law.
_HEAD_TRAFFIC = 0.3
_ZIPF_EXPONENT = 0.9
_USE_CASE_WORDS = ("", " ideas", " supplies", " shopping", " essentials")
NONE = -1
SUBSTITUTE, WANTED = 1, 2


@dataclass(frozen=True)
class SearchTraffic:
    """What a log needs of all queries: who types what, and how often."""

    texts: list[str]
    #: The type whose shoppers type it; its traffic is part of that type's.
    anchor_Q: IntArray
    #: Chance of the query among the searches of its anchor type; sums to one for each type that has any.
    traffic_Q: FloatArray

    @property
    def num_queries(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Queries(SearchTraffic):
    """All invented queries. `role_QT` says per type: 2 wanted, 1 substitute of a wanted one, 0 neither."""

    kind_Q: IntArray
    role_QT: IntArray
    brand_Q: IntArray
    variety_Q: IntArray
    flags_Q: IntArray


@dataclass(frozen=True)
class _Intent:
    types: tuple[int, ...]
    brand: int = NONE
    variety: int = NONE
    flags: int = 0


def make_queries(config: MarketplaceConfig, catalog: Catalog, seed: np.random.SeedSequence) -> Queries:
    """About `config.queries` different texts; each type has its head queries and an equal share of others.

    Facets are copied from a random product of the type, so shoppers ask for what exists.
    """
    rng = np.random.default_rng(seed)
    num_types = len(catalog.assortment.types)
    types_of_brand: dict[int, set[int]] = {}
    for brand, type_index in zip(catalog.brand_P.tolist(), catalog.type_P.tolist(), strict=True):
        types_of_brand.setdefault(brand, set()).add(type_index)

    taken: set[str] = set()
    rows: list[tuple[str, int, int, _Intent]] = []
    share = np.full(num_types, config.queries // num_types)
    share[: config.queries % num_types] += 1
    writers = [_QueryWriter(catalog, index, types_of_brand, rng) for index in range(num_types)]
    for type_index, writer in enumerate(writers):
        for text, intent in writer.head():
            taken.add(text)
            rows.append((text, 0, type_index, intent))
    heads = list(rows)
    for type_index, writer in enumerate(writers):
        mine = [row for row in heads if row[2] == type_index]
        given = len(mine)
        for _ in range(20 * int(share[type_index])):
            if len(mine) >= share[type_index]:
                break
            text, kind, intent = writer.next(mine)
            if text not in taken:
                taken.add(text)
                mine.append((text, kind, type_index, intent))
        rows += mine[given:]
    return _assemble(rows, catalog)


class _QueryWriter:
    """Writes the queries of one type."""

    def __init__(
        self,
        catalog: Catalog,
        type_index: int,
        types_of_brand: dict[int, set[int]],
        rng: np.random.Generator,
    ) -> None:
        self._catalog = catalog
        self._type = type_index
        self._kind = catalog.assortment.types[type_index]
        self._types_of_brand = types_of_brand
        self._rng = rng
        self._products = np.flatnonzero(catalog.type_P == type_index)
        weights = catalog.popularity_P[self._products]
        self._chances = np.cumsum(weights) / weights.sum()
        self._use_cases = [
            (name, tuple(catalog.assortment.type_index(noun) for noun in nouns))
            for name, nouns in USE_CASES
            if self._kind.name in nouns
        ]
        kinds = list(_KIND_SHARES.items()) if self._use_cases else [*_KIND_SHARES.items()][:2]
        self._kind_names = [name for name, _ in kinds]
        self._kind_chances = np.cumsum([share for _, share in kinds])
        self._kind_chances /= self._kind_chances[-1]

    def head(self) -> list[tuple[str, _Intent]]:
        return [(name, _Intent((self._type,))) for name in self._kind.names]

    def next(self, so_far: list[tuple[str, int, int, _Intent]]) -> tuple[str, int, _Intent]:
        kind = self._kind_names[int(np.searchsorted(self._kind_chances, self._rng.random(), side="right"))]
        if kind == "brand":
            text, intent = self._brand()
        elif kind == "attribute":
            text, intent = self._attribute()
        elif kind == "use case":
            text, intent = self._use_case()
        else:
            original = so_far[int(self._rng.random() ** 2 * len(so_far))]
            text, intent = misspell(original[0], self._rng), original[3]
        return text, KINDS.index(kind), intent

    def _product(self) -> int:
        return int(self._products[np.searchsorted(self._chances, self._rng.random(), side="right")])

    def _noun(self) -> str:
        names = self._kind.names
        return names[0] if self._rng.random() < 0.7 else names[int(self._rng.integers(len(names)))]

    def _brand(self) -> tuple[str, _Intent]:
        product, pick = self._product(), self._rng.random()
        brand = int(self._catalog.brand_P[product])
        name = self._catalog.brands[brand].lower()
        if pick < 0.2:
            return name, _Intent(tuple(sorted(self._types_of_brand[brand])), brand=brand)
        if pick < 0.65:
            return f"{name} {self._noun()}", _Intent((self._type,), brand=brand)
        variety = int(self._catalog.variety_P[product])
        word = self._catalog.assortment.varieties[variety]
        return f"{name} {word} {self._noun()}", _Intent((self._type,), brand=brand, variety=variety)

    def _attribute(self) -> tuple[str, _Intent]:
        product, pick = self._product(), self._rng.random()
        variety = int(self._catalog.variety_P[product])
        word = self._catalog.assortment.varieties[variety]
        flags = flag_names(int(self._catalog.flags_P[product]))
        if not flags or pick < 0.4:
            return f"{word} {self._noun()}", _Intent((self._type,), variety=variety)
        flag = flags[int(self._rng.integers(len(flags)))]
        bit = 1 << FLAGS.index(flag)
        if pick < 0.65:
            return f"{flag} {self._noun()}", _Intent((self._type,), flags=bit)
        if pick < 0.75:
            return f"{self._noun()} {flag}", _Intent((self._type,), flags=bit)
        return f"{flag} {word} {self._noun()}", _Intent((self._type,), variety=variety, flags=bit)

    def _use_case(self) -> tuple[str, _Intent]:
        name, types = self._use_cases[int(self._rng.integers(len(self._use_cases)))]
        return name + _USE_CASE_WORDS[int(self._rng.integers(len(_USE_CASE_WORDS)))], _Intent(types)


def misspell(text: str, rng: np.random.Generator) -> str:
    """One slip of the finger in the longest word: a letter swapped, dropped, doubled or replaced."""
    words = text.split(" ")
    longest = max(range(len(words)), key=lambda index: len(words[index]))
    word = words[longest]
    place = int(rng.integers(1, max(2, len(word) - 1)))
    slip = int(rng.integers(4))
    if slip == 0 and place + 1 < len(word):
        word = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    elif slip == 1:
        word = word[:place] + word[place + 1 :]
    elif slip == 2:
        word = word[:place] + word[place] + word[place:]
    else:
        word = word[:place] + "aeioustrnl"[int(rng.integers(10))] + word[place + 1 :]
    return " ".join([*words[:longest], word, *words[longest + 1 :]])


def _assemble(rows: list[tuple[str, int, int, _Intent]], catalog: Catalog) -> Queries:
    types = catalog.assortment.types
    groups = [kind.group for kind in types]
    role_QT = np.zeros((len(rows), len(types)), np.int8)
    for index, (_, _, _, intent) in enumerate(rows):
        wanted_groups = {groups[wanted] for wanted in intent.types}
        for other, group in enumerate(groups):
            if group in wanted_groups:
                role_QT[index, other] = SUBSTITUTE
        role_QT[index, list(intent.types)] = WANTED
    anchor_Q = np.array([row[2] for row in rows], np.int32)
    kind_Q = np.array([row[1] for row in rows], np.int8)
    return Queries(
        texts=[row[0] for row in rows],
        kind_Q=kind_Q,
        anchor_Q=anchor_Q,
        role_QT=role_QT,
        brand_Q=np.array([row[3].brand for row in rows], np.int32),
        variety_Q=np.array([row[3].variety for row in rows], np.int32),
        flags_Q=np.array([row[3].flags for row in rows], np.int32),
        traffic_Q=zipf_traffic(anchor_Q, len(types), head_Q=kind_Q == 0),
    )


def zipf_traffic(anchor_Q: IntArray, num_types: int, *, head_Q: BoolArray) -> FloatArray:
    """Zipf within each type, in order of writing, after the head queries took their share."""
    traffic_Q = np.zeros(len(anchor_Q))
    for type_index in range(num_types):
        head = np.flatnonzero((anchor_Q == type_index) & head_Q)
        tail = np.flatnonzero((anchor_Q == type_index) & ~head_Q)
        for members, mass in (
            (head, _HEAD_TRAFFIC if len(tail) else 1.0),
            (tail, 1.0 - _HEAD_TRAFFIC if len(head) else 1.0),
        ):
            weights = 1.0 / np.arange(1, len(members) + 1) ** _ZIPF_EXPONENT
            traffic_Q[members] = mass * weights / max(weights.sum(), 1e-12)
    return traffic_Q
