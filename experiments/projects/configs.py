"""The three configs of a project, as plain dictionaries: what fits a survey, and why.

A note says why a key has its value; `written` puts notes and the meanings of all keys beside the values.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.config import SHIPPED
from experiments.config_keys import toml_value
from experiments.projects.survey import ColumnFacts, Survey

ProjectSize = Literal["tiny", "small"]

#: Columns of impressions that are known before ranking and that a server is told, with what they are.
KNOWN_BEFORE = ("store_id", "device")
#: Columns that every feature config treats by itself or that are no features at all.
_NEVER = {
    "products": {"product_id", "title", "aisle", "image", "description", "price", "brand"},
    "impressions": {
        *("impression_id", "timestamp", "user_id", "product_id", "clicked", "click_timestamp", "query"),
        *("price", "position", *KNOWN_BEFORE),
    },
}
#: A column with more values than this share of its rows is rather an identifier or a free text.
_MOST_DISTINCT_SHARE = 0.2
#: Below so many impressions ids are rare, and a row of their own is worth it sooner.
_SMALL_LOG = 50_000
#: Grades on fewer queries than this leave no test queries worth the name.
LEAST_GRADED_QUERIES = 20
_LONGEST_WEEK = 7


@dataclass(frozen=True)
class Drafted:
    """A config and why: `notes` by path, `spare` lines to uncomment by the path of their list."""

    kind: str
    content: dict[str, Any]
    notes: Mapping[str, str] = field(default_factory=dict)
    spare: Mapping[str, Sequence[str]] = field(default_factory=dict)


def trains_encoders(survey: Survey) -> bool:
    """Whether there is anything that an encoder can be trained on: images, or grades."""
    return survey.has_images or has_grades(survey)


def has_grades(survey: Survey) -> bool:
    """Whether there are graded queries enough for stage 2 and for table 1."""
    return survey.graded_queries >= LEAST_GRADED_QUERIES


def has_histories(survey: Survey) -> bool:
    """Whether anybody who saw an impression may have bought something before."""
    return bool(survey.users and survey.buyers)


def draft_features(survey: Survey) -> Drafted:
    """Features that the columns allow, and a split that the days and clicks allow."""
    minimum = {} if survey.impressions >= _SMALL_LOG else {"min_count": 2}
    sparse: list[dict[str, Any]] = [
        {"name": name, "column": name, **minimum}
        for name in (
            *(["user_id"] if survey.users else []),
            "product_id",
            *(["query"] if survey.queries else []),
        )
    ]
    dense: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    if survey.column("impressions", "price"):
        dense.append({"name": "price", "column": "price", "transform": "log"})
    elif survey.column("products", "price"):
        dense.append({"name": "price", "source": "products", "column": "price", "transform": "log"})
    if survey.aisles > 1:
        sparse.append({"name": "aisle", "source": "products", "column": "aisle", "oov_rows": 1})
    if _varies(survey.column("products", "brand")):
        sparse.append({"name": "brand", "source": "products", "column": "brand", "oov_rows": 4})
    for name in KNOWN_BEFORE:
        if _varies(survey.column("impressions", name)):
            sparse.append({"name": name, "column": name, "oov_rows": 1})
    position = survey.column("impressions", "position")
    if _varies(position) and position is not None and position.kind == "id":
        sparse.append({"name": "position", "column": "position", "oov_rows": 1, "serving_value": 1})
        notes["position"] = "so that its effect is not credited to the product; a server does not know it yet"
    sparse += [
        {"name": name, "source": "timestamp", "column": name, "oov_rows": 1}
        for name in ("hour_of_day", "day_of_week")
    ]
    spare_sparse, spare_dense = _spare_columns(survey)
    content: dict[str, Any] = {"dense": dense, "sparse": sparse}
    keys = ["query", "product", "user", "query_product"] if survey.queries else ["product", "user"]
    keys = [key for key in keys if key != "user" or survey.users]
    content["counters"] = {
        "keys": keys,
        "windows_days": [days for days in (1, 7, 28) if days <= max(1, survey.days)],
        "granularity": "hour",
        "prior_impressions": 20.0,
    }
    if has_histories(survey):
        content["history"] = {"window_days": 84, "cap": 50}
    content["labels"] = {"attribution_hours": 24}
    content["split"], notes["split"] = _split(survey)
    lacking = [name for name, count in (("queries", survey.queries), ("users", survey.users)) if not count]
    if lacking:
        notes["counters.keys"] = f"the impressions have no {' and no '.join(lacking)}"
    return Drafted("features", content, notes, {"sparse": spare_sparse, "dense": spare_dense})


def _varies(column: ColumnFacts | None) -> bool:
    return column is not None and column.kind == "id" and column.distinct > 1


def _spare_columns(survey: Survey) -> tuple[list[str], list[str]]:
    """Further columns as lines to uncomment: nobody here can know whether they are known before a click."""
    sparse, dense = [], []
    for column in survey.columns:
        if column.table not in _NEVER:  # no feature reads its columns
            continue
        if column.name in _NEVER[column.table] or column.kind == "other" or column.distinct < 2:
            continue
        source = {} if column.table == "impressions" else {"source": column.table}
        line = toml_value({"name": column.name, **source, "column": column.name})
        told = f"{line},  # {column.distinct:,} values, {column.filled / column.rows:.0%} filled"
        if column.kind == "number":
            dense.append(told)
        elif column.distinct <= max(50, _MOST_DISTINCT_SHARE * column.rows):
            sparse.append(told)
    return sparse, dense


def tested_days(survey: Survey) -> Sequence[tuple[int, int]]:
    """Impressions and clicks of the days that become the test; none where users are cut, not days."""
    split, _ = _split(survey)
    return survey.click_days[-split["test_days"] :] if split["method"] == "global" else ()


def _split(survey: Survey) -> tuple[dict[str, Any], str]:
    """The last days, as many as leave most of the log for training and have clicks in them."""
    days = survey.days
    if days < 3:
        return {"method": "per_user", "validation_share": 0.1, "test_share": 0.1}, (
            f"the log covers {days} day{'s' if days > 1 else ''}, too few to cut by days"
        )
    test = validation = min(_LONGEST_WEEK, max(1, days // 5))

    def both_classes(part: Sequence[tuple[int, int]]) -> bool:
        shown, clicked = (sum(column) for column in zip(*part, strict=True))
        return 0 < clicked < shown

    while test + validation < days - 1 and not both_classes(survey.click_days[-test:]):
        test += 1
    while test + validation < days - 1 and not both_classes(survey.click_days[-test - validation : -test]):
        validation += 1
    why = f"of {days} days, {survey.first_day} to {survey.last_day}"
    return {"method": "global", "validation_days": validation, "test_days": test}, why


def draft_encoders(survey: Survey, size: ProjectSize) -> Drafted:
    """The shipped recipe of that size without the stages that the data cannot feed."""
    shipped = tomllib.loads((SHIPPED / f"encoders_{size}.toml").read_text(encoding="utf-8"))
    content: dict[str, Any] = {"size": shipped.pop("size"), "modalities": ["image", "text"]}
    notes: dict[str, str] = {}
    content |= shipped
    if not survey.has_images:
        content["modalities"] = ["text"]
        notes["modalities"] = "no images that can be read"
        for stage in ("image_warmup", "pretrain"):
            content.pop(stage)
        content["align"].pop("completion")
    if not has_grades(survey):
        content.pop("align")
        notes["size"] = f"no [align]: {survey.graded_queries} graded queries are too few for stage 2"
    if not trains_encoders(survey):
        content.pop("warmup")
        notes["size"] = (
            "nothing to train on: neither images nor grades; this only encodes with published weights"
        )
    elif survey.sources and has_grades(survey):
        people_first = sorted(survey.sources, key=lambda source: (source != "human", source))
        content = {"size": content.pop("size"), "sources": people_first, **content}
    return Drafted("encoders", content, notes)


def draft_sweep(survey: Survey, size: ProjectSize, *, truth: str) -> Drafted:
    """The baseline and what vectors add to it, as far as there are queries and purchases.

    Args:
        truth: where the simulated truth lies, as seen from the project; counts only if there is one.
    """
    shipped = tomllib.loads((SHIPPED / "demo.toml").read_text(encoding="utf-8"))
    trained = trains_encoders(survey)
    vectors = "runs/encoders/tables" if trained else "runs/lsa"
    content: dict[str, Any] = {
        "name": f"table 2 of {survey.data.resolve().name}",
        "baseline": "dcn",
        "seeds": [1, 2] if size == "tiny" else [1, 2, 3, 4, 5],
        "features": "runs/features",
        "product_table": f"{vectors}/products",
    }
    notes: dict[str, str] = {}
    if not trained:
        notes["product_table"] = "TF-IDF and SVD of titles, as there is nothing to train encoders on"
    if survey.queries:
        content["query_table"] = f"{vectors}/queries"
        content["second_baseline"] = "dcn_lexical"
    if survey.truth:
        content["simulated"] = True
        content["truth"] = truth
    content["ranker"] = shipped["ranker"]
    content["training"] = shipped["training"]
    if survey.impressions < _SMALL_LOG:
        content["training"] = content["training"] | {"batch_size": 256}
        notes["training.batch_size"] = f"small, as {survey.impressions:,} impressions are few"
    content["variants"] = _variants(survey, trained=trained)
    if not has_histories(survey):
        lacking = "users whose purchases are known" if survey.purchases else "purchases"
        notes["variants"] = f"no history variants: there are no {lacking}"
    return Drafted("sweep", content, notes)


def _variants(survey: Survey, *, trained: bool) -> dict[str, Any]:
    entities = ["product", *(["query"] if survey.queries else [])]
    with_history = [*entities, "history"] if has_histories(survey) else None
    words = " + ".join(entities) + (" + similarity" if len(entities) > 1 else "")
    found: dict[str, Any] = {"dcn": {"title": "DCN baseline"}}

    def add(name: str, title: str, tables: str | None = None, **semantic: Any) -> None:
        places = {}
        if tables:
            places["product_table"] = f"runs/{tables}/products"
            if survey.queries:
                places["query_table"] = f"runs/{tables}/queries"
        found[name] = {"title": title, **places, "ranker": {"semantic": semantic}}

    if survey.queries:
        add(
            "dcn_lexical",
            "DCN + one lexical cosine (character TF-IDF of query and title)",
            "tfidf",
            entities=["product", "query"],
            reads="similarity",
        )
    add("dcn_vectors", f"DCN + {words}", entities=entities)
    if with_history:
        add("dcn_history", f"DCN + {words} + purchase history", entities=with_history)
        add(
            "dcn_history_tiers",
            f"DCN + {words} + purchase history in tiers",
            entities=with_history,
            history_tiers=16,
        )
    if trained:
        last = with_history or entities
        add("dcn_lsa", "DCN + the same vectors, of LSA instead of encoders", "lsa", entities=last)
    add(
        "dcn_random",
        "DCN + the same, trainable vectors that know nothing",
        entities=with_history or entities,
        initialisation="random",
    )
    return found
