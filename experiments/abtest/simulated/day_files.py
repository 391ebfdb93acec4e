"""The folder of one simulated day: it appears whole or not at all, and everything later is made of such.

    DAY/
      impressions.parquet, purchases.parquet, truth/   what was served, as a further part of the world's log
      twins.parquet            a row for each consumer and policy: what happened and was to be expected
      twin_purchases.parquet   what each consumer bought with each policy
      slices.parquet           served counts by consumer and slice
      latency.parquet          milliseconds of served requests
      control_scores.npy, ...  what both policies answered [S, K]: to play the day again with other luck
      decisions.parquet        with exploration: how each first position was decided
      day.json                 counts

Shapes: S searches, K candidates of a search, N ads shown, U consumers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.abtest.simulated.settings import CONTROL, POLICIES, TREATMENT
from experiments.marketplace.days.purchases import PurchaseRows, sorted_by_time
from experiments.marketplace.days.searches import ImpressionRows
from experiments.marketplace.generate import World
from experiments.marketplace.live.advertisers import RESERVE
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import Played, Shown
from experiments.marketplace.tables import FIRST_USER_ID, LogWriter, write_table
from experiments.marketplace.world.catalog import FloatArray
from experiments.marketplace.world.queries import KINDS
from features.artifacts import atomic_folder, atomic_write_json

#: What is counted of each consumer and day, and the part of it that has an expectation.
EXPECTED = ("clicks", "conversions", "revenue")
#: What an expectation is named by.
EXPECTATION = "expected_"
COUNTS = ("searches", "impressions", *EXPECTED, "relevance", "errors")
#: Slices of queries are of so many: those asked most.
TOP_QUERIES = 50


@dataclass(frozen=True)
class Asked:
    """What both policies answered on a day: scores [S, K], failures [S] and milliseconds [S], by policy."""

    score_SK: Mapping[str, FloatArray]
    failed_S: Mapping[str, npt.NDArray[np.bool_]]
    ms_S: Mapping[str, FloatArray]


@dataclass(frozen=True)
class PlayedDay:
    """Everything that a day's folder is written of."""

    demand: Demand
    asked: Asked
    played: Played
    bought: Mapping[str, PurchaseRows]
    variant_S: npt.NDArray[np.str_]
    variant_U: npt.NDArray[np.str_]
    #: True click probability of each candidate at the first position; None without exploration.
    first_probability_SK: FloatArray | None


def calendar_day(world: World, day: int) -> date:
    """The date of a day of the simulation."""
    return world.config.start + timedelta(days=day)


def write_day(
    folder: Path,
    world: World,
    found: PlayedDay,
    *,
    first_impression: int,
    first_purchase: int,
    top_queries: npt.NDArray[np.bool_],
    about: Mapping[str, Any],
) -> None:
    """Write a day's folder."""
    with atomic_folder(folder) as temporary:
        with LogWriter(
            temporary,
            world.catalog,
            world.queries,
            first_impression=first_impression,
            first_purchase=first_purchase,
        ) as log:
            log.impressions(_served_impressions(found))
            log.purchases(served_purchases(found.bought, found.variant_U))
        day = calendar_day(world, found.demand.day)
        write_table(temporary / "twins.parquet", _twins(found, day))
        write_table(temporary / "twin_purchases.parquet", _twin_purchases(found.bought))
        write_table(temporary / "slices.parquet", _slices(world, found, day, top_queries))
        write_table(temporary / "latency.parquet", _latency(found, day))
        if found.first_probability_SK is not None:
            write_table(temporary / "decisions.parquet", decision_table(world, found, day))
        for name, score_SK in found.asked.score_SK.items():
            np.save(temporary / f"{name}_scores.npy", score_SK.astype(np.float32))
        atomic_write_json(temporary / "day.json", dict(about))


def read_twin_purchases(folder: Path) -> dict[str, PurchaseRows]:
    """What was bought on a day, by policy."""
    table = pq.read_table(folder / "twin_purchases.parquet")
    policy = np.array(table["policy"].to_pylist())
    columns = {field.name: table[field.name].to_numpy() for field in fields(PurchaseRows)}
    rows = PurchaseRows(**columns)
    return {name: rows.rows(np.flatnonzero(policy == name)) for name in POLICIES}


def read_scores(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """What both policies answered on a day, by policy [S, K].

    Raises:
        ValueError: the day's folder has none.
    """
    paths = {name: folder / f"{name}_scores.npy" for name in POLICIES}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"{path} is missing: the day cannot be played again")
    return {name: np.load(path).astype(np.float64) for name, path in paths.items()}


def served_purchases(bought: Mapping[str, PurchaseRows], variant_U: npt.NDArray[np.str_]) -> PurchaseRows:
    """What the twins that were really served bought: what the shop's log shows."""
    policy_U = np.where(variant_U == TREATMENT, TREATMENT, CONTROL)  # the holdout has the control
    return sorted_by_time(
        *(rows.rows(np.flatnonzero(policy_U[rows.user_N] == name)) for name, rows in bought.items())
    )


def _is_served(found: PlayedDay, policy: str, shown: Shown) -> npt.NDArray[np.bool_]:
    treated_S = found.variant_S == TREATMENT
    served: npt.NDArray[np.bool_] = treated_S[shown.search_N] == (policy == TREATMENT)
    return served


def _served_impressions(found: PlayedDay) -> ImpressionRows:
    """The served ads in order of search and position."""
    demand, parts = found.demand, []
    for policy, shown in found.played.shown.items():
        mine = _is_served(found, policy, shown)
        parts.append({field.name: getattr(shown, field.name)[mine] for field in fields(Shown)})
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((rows["position_N"], rows["search_N"]))
    return impression_rows(demand, Shown(**{name: column[order] for name, column in rows.items()}))


def impression_rows(demand: Demand, shown: Shown) -> ImpressionRows:
    """Shown ads as rows of the log."""
    search_N, asked = shown.search_N, demand.asked
    return ImpressionRows(
        time_us_N=asked.time_us_S[search_N],
        user_N=asked.user_S[search_N],
        query_N=asked.query_S[search_N],
        product_N=shown.product_N,
        position_N=shown.position_N,
        store_N=asked.store_S[search_N],
        device_N=asked.device_S[search_N],
        price_N=demand.shop_price_SK[search_N, shown.place_N],
        grade_N=shown.grade_N,
        probability_N=shown.probability_N,
        terms={},
        clicked_N=shown.clicked_N,
        click_time_us_N=shown.click_time_us_N,
    )


def counts_of_ads(shown: Shown) -> dict[str, FloatArray]:
    """What each shown ad adds to the counts, and to what was to be expected."""
    return {
        "impressions": np.ones(len(shown.search_N)),
        "clicks": shown.clicked_N.astype(np.float64),
        "conversions": shown.bought_N.astype(np.float64),
        "revenue": shown.charged_N,
        "relevance": shown.grade_N.astype(np.float64),
        "expected_clicks": shown.probability_N,
        "expected_conversions": shown.probability_N * shown.conversion_chance_N,
        "expected_revenue": shown.probability_N * shown.price_N,
    }


def _twins(found: PlayedDay, day: date) -> pa.Table:
    """A row for each consumer who searched, and policy."""
    user_S = found.demand.asked.user_S
    unit_U, place_S = np.unique(user_S, return_inverse=True)
    tables = []
    for policy in POLICIES:
        shown = found.played.shown[policy]
        columns = {
            name: np.bincount(place_S[shown.search_N], weights=value_N, minlength=len(unit_U))
            for name, value_N in counts_of_ads(shown).items()
        }
        columns["searches"] = np.bincount(place_S, minlength=len(unit_U)).astype(np.float64)
        columns["errors"] = np.bincount(place_S, weights=found.asked.failed_S[policy], minlength=len(unit_U))
        tables.append(
            pa.table(
                {
                    "unit": unit_U + FIRST_USER_ID,
                    "variant": found.variant_U[unit_U].tolist(),
                    "policy": [policy] * len(unit_U),
                    "day": pa.array([day] * len(unit_U), pa.date32()),
                    **columns,
                }
            )
        )
    return pa.concat_tables(tables)


def _twin_purchases(bought: Mapping[str, PurchaseRows]) -> pa.Table:
    tables = [
        pa.table({"policy": [policy] * len(rows.user_N), **vars(rows)}) for policy, rows in bought.items()
    ]
    return pa.concat_tables(tables)


def _slices(world: World, found: PlayedDay, day: date, top_Q: npt.NDArray[np.bool_]) -> pa.Table:
    """Served counts by consumer and aisle, kind of query, and query if it is one of the most frequent."""
    asked, parts = found.demand.asked, []
    aisles = np.array(world.catalog.assortment.aisles, dtype=object)
    texts = np.array(world.queries.texts, dtype=object)
    kinds = np.array(KINDS, dtype=object)
    for policy, shown in found.played.shown.items():
        mine = np.flatnonzero(_is_served(found, policy, shown))
        user_N, query_N = asked.user_S[shown.search_N[mine]], asked.query_S[shown.search_N[mine]]
        counts = {name: value_N[mine] for name, value_N in counts_of_ads(shown).items()}
        counts = {name: value_N for name, value_N in counts.items() if name in COUNTS}
        frequent = top_Q[query_N]
        for kind, names_N, chosen in (
            ("aisle", aisles[world.catalog.aisle_P[shown.product_N[mine]]], None),
            ("query kind", kinds[world.queries.kind_Q[query_N]], None),
            ("query", texts[query_N], frequent),
        ):
            rows = {"unit": user_N + FIRST_USER_ID, "slice": names_N.astype(str), **counts}
            if chosen is not None:
                rows = {name: column[chosen] for name, column in rows.items()}
            table = pa.table(rows).group_by(["unit", "slice"]).aggregate([(name, "sum") for name in counts])
            table = table.rename_columns([name.removesuffix("_sum") for name in table.column_names])
            table = table.append_column("kind", pa.array([kind] * len(table), pa.string()))
            parts.append(table.append_column("day", pa.array([day] * len(table), pa.date32())))
    return pa.concat_tables(part.select(parts[0].column_names) for part in parts).sort_by(
        [("kind", "ascending"), ("slice", "ascending"), ("unit", "ascending")]
    )


def _latency(found: PlayedDay, day: date) -> pa.Table:
    """Of requests that were served; twins that only show the truth are not timed."""
    treated_S = found.variant_S == TREATMENT
    ms_S = np.where(treated_S, found.asked.ms_S[TREATMENT], found.asked.ms_S[CONTROL])
    timed = np.isfinite(ms_S)
    count = int(timed.sum())
    return pa.table(
        {
            "variant": found.variant_S[timed].tolist(),
            "day": pa.array([day] * count, pa.date32()),
            "ms": ms_S[timed],
        }
    )


def decision_table(world: World, found: PlayedDay, day: date) -> pa.Table:
    """How the first position of each served search was decided, over the candidates that could bid."""
    assert found.first_probability_SK is not None
    demand, played = found.demand, found.played
    treated_S = found.variant_S == TREATMENT

    def served(name: str) -> npt.NDArray[Any]:
        first = {policy: getattr(played.firsts[policy], name) for policy in POLICIES}
        return np.where(treated_S, first[TREATMENT], first[CONTROL])

    place_S, propensity_S = served("place_S"), served("propensity_S")
    rows = np.flatnonzero(place_S >= 0)
    clicked_S = np.zeros(len(demand), bool)
    for policy, shown in played.shown.items():
        first = _is_served(found, policy, shown) & (shown.position_N == 1)
        clicked_S[shown.search_N[first]] = shown.clicked_N[first]
    entered_SK = played.bid_SK[rows] >= RESERVE
    offsets = np.concatenate([[0], np.cumsum(entered_SK.sum(axis=1))]).astype(np.int32)

    def lists(value_SK: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(value_SK[rows][entered_SK], kind))

    before_S = (np.cumsum(entered_SK, axis=1) - 1)[np.arange(len(rows)), place_S[rows]]
    product_id_SK = world.catalog.product_id_P[demand.product_SK]
    return pa.table(
        {
            "unit": demand.asked.user_S[rows] + FIRST_USER_ID,
            "variant": found.variant_S[rows].tolist(),
            "day": pa.array([day] * len(rows), pa.date32()),
            "search": rows,
            "action": before_S,
            "propensity": propensity_S[rows],
            "clicked": clicked_S[rows].astype(np.int8),
            "product_ids": lists(product_id_SK, pa.int64()),
            "bids": lists(played.bid_SK, pa.float64()),
            **{f"{policy}_scores": lists(found.asked.score_SK[policy], pa.float32()) for policy in POLICIES},
            "true_probabilities": lists(found.first_probability_SK, pa.float64()),
        }
    )
