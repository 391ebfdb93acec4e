"""The feature schema: the contract between logs, features, model and server.

One `FeatureConfig` says what an impression looks like to the ranker. It is written into every feature set
and every model, so that training, evaluation and serving cannot disagree about it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from features.artifacts import StrictModel

SourceTable = Literal["impressions", "products", "timestamp"]
Granularity = Literal["exact", "hour", "day"]
CounterKey = Literal["query", "product", "user", "query_product"]

#: Columns of a feature set that are not features; no feature may take one of these names.
RESERVED_COLUMNS = (
    "impression_id",
    "timestamp",
    "clicked",
    "product_index",
    "query_index",
    "user_index",
    "history_start",
    "history_end",
    "slice_has_purchases",
    "slice_seen_product",
    "slice_query_frequency",
)

#: The largest cap of a history: a model may read so many purchases.
MAX_CAP = 10_000

#: Columns of the impressions that are known only afterwards.
LABEL_COLUMNS = ("clicked", "click_timestamp")

#: What `source = "timestamp"` offers: parts of the impression's UTC time.
TIMESTAMP_PARTS = ("hour_of_day", "day_of_week")


class DenseFeature(StrictModel):
    """A number read from one input column.

    `log` is sign(x) log(1 + |x|); both transforms end with (x - mean) / sd of the training window.
    A null becomes the training mean, and if the training window has nulls a second column
    `<name>_missing` (0 or 1) is added.
    """

    #: What the column of the feature set is called.
    name: str
    #: The table whose column it is; products are joined by product_id.
    source: SourceTable = "impressions"
    #: Name of the input column, a number.
    column: str
    #: Before standardising: "standard" takes the number as it is, "log" its signed logarithm.
    transform: Literal["standard", "log"] = "standard"


class SparseFeature(StrictModel):
    """An id with a trainable embedding.

    Rows of its table: 0 for a missing id, then `oov_rows` hashed rows for ids that the vocabulary lacks,
    then the ids seen at least `min_count` times in the training window.
    """

    #: What the feature is called, in the feature set and in reports.
    name: str
    #: The table whose column it is, or "timestamp" for a part of the impression's UTC time.
    source: SourceTable = "impressions"
    #: Name of the input column, an integer or a string; of "timestamp" hour_of_day or day_of_week.
    column: str
    #: Rarer ids of the training window share the rows of unknown ids.
    min_count: Annotated[int, Field(ge=1)] = 5
    #: Rows that unknown ids are hashed to.
    oov_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    #: The value that a server uses when the request has none; needed for what is unknown before ranking
    #: (the position: it is a feature in training so that its effect is not credited to the product).
    serving_value: str | int | None = None


class CounterConfig(StrictModel):
    """Impressions, clicks and smoothed CTR of each key in trailing windows.

    A click counts from the moment of the click, never from its impression. `granularity` floors the
    moment as of which a counter is read; set it to how often the server refreshes its counters.
    Smoothed CTR = (clicks + prior_impressions * ctr) / (impressions + prior_impressions), with ctr that of
    the training window.
    """

    #: What is counted for: the query, the product, the user, and the product under this query.
    keys: tuple[CounterKey, ...] = ("query", "product", "user", "query_product")
    #: How far each counter looks back, in days; every key has every window.
    windows_days: tuple[Annotated[int, Field(ge=1, le=365)], ...] = (1, 7, 28)
    #: How fresh counters are: as of the impression itself ("exact"), its hour or its day.
    granularity: Granularity = "hour"
    #: Weight of the average click rate in a smoothed one, in impressions.
    prior_impressions: Annotated[float, Field(gt=0)] = 20.0


class HistoryConfig(StrictModel):
    """What the user purchased in [t - window_days, t), newest first, at most `cap` of them."""

    #: How far back purchases count.
    window_days: Annotated[int, Field(ge=1, le=3650)] = 84
    #: At most so many purchases, the newest.
    cap: Annotated[int, Field(ge=1, le=MAX_CAP)] = 50
    #: Count a product bought several times once, at its newest purchase.
    deduplicate: bool = False


class LabelConfig(StrictModel):
    """Which clicks count for their impression.

    One that came less than `attribution_hours` after it; a later click counts nowhere, neither as a label nor
    in a counter. A label leaves out, too, what was not known yet when its split ended: training labels use
    no click from after the train days, validation labels none from after the validation days (per-user
    split: from after the user's first impression of a later split). Test labels see their whole window.
    """

    #: A click counts if it came less than so long after its impression.
    attribution_hours: Annotated[float, Field(gt=0, le=8_760)] = 24.0

    @property
    def attribution_us(self) -> int:
        """The window in microseconds; it does not hold its end."""
        return round(self.attribution_hours * 3_600_000_000)


class SplitConfig(StrictModel):
    """Whole UTC days, cut from the end of the log: ... train | validation_days | test_days.

    `per_user` cuts each user's own impressions by time instead, in the shares given (MovieLens-style logs,
    where users hardly overlap in time). Features still look back only, but weights are then trained on other
    users' later clicks.
    """

    #: "global" cuts the log by days, "per_user" each user's own impressions by share.
    method: Literal["global", "per_user"] = "global"
    #: Days before the test days; they decide when training stops. For "global".
    validation_days: Annotated[int, Field(ge=1)] = 7
    #: Last days of the log, on which rankers are measured. For "global".
    test_days: Annotated[int, Field(ge=1)] = 7
    #: Impressions before the first `burn_in_days` are dropped from training: their counters and histories
    #: look back over a log that does not exist yet.
    burn_in_days: Annotated[int, Field(ge=0)] = 0
    #: Share of a user's impressions, those before the test ones. For "per_user".
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    #: Share of a user's impressions, the last ones. For "per_user".
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1


class FeatureConfig(StrictModel):
    """Every feature of an impression, and how the log is cut in time.

    >>> config = FeatureConfig(sparse=(SparseFeature(name="user_id", column="user_id"),))
    >>> config.history.window_days, config.counters.windows_days
    (84, (1, 7, 28))
    """

    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...]
    counters: CounterConfig | None = CounterConfig()
    history: HistoryConfig | None = HistoryConfig()
    labels: LabelConfig = LabelConfig()
    split: SplitConfig = SplitConfig()

    @property
    def features(self) -> tuple[DenseFeature | SparseFeature, ...]:
        """Dense, then sparse features."""
        return self.dense + self.sparse

    @model_validator(mode="after")
    def _names_are_unique_and_free(self) -> Self:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"feature names must be unique, but {twice} appear more than once; rename one")
        taken = sorted(set(names) & set(RESERVED_COLUMNS))
        if taken:
            raise ValueError(f"feature names {taken} are reserved for the feature set itself; rename them")
        for feature in self.features:
            if feature.source == "impressions" and feature.column in LABEL_COLUMNS:
                raise ValueError(
                    f"feature {feature.name!r} reads {feature.column!r} of the impressions, which is the "
                    "label: nobody knows when a product is ranked whether it will be clicked; remove it"
                )
            if feature.source == "timestamp" and feature.column not in TIMESTAMP_PARTS:
                raise ValueError(
                    f"feature {feature.name!r} asks for {feature.column!r} of the timestamp; "
                    f"it has {', '.join(TIMESTAMP_PARTS)}"
                )
        return self
