"""The named rules that rows of the input tables are held to, as SQL conditions that are true on a bad row.

In a condition, `r` is the row, `r._file` and `r._row` its place; a rule with `joins` may also use
`known.product_id` (a product of the catalogue that is itself not quarantined, or null), `copies.first` (the
place of the first good row with the same id) and `images.image` (an image that cannot be read, or null).
"""

from dataclasses import dataclass
from typing import Literal

from features.inputs.blanks import is_missing_sql
from features.inputs.table_specs import TableName
from features.schema import LabelConfig

Severity = Literal["warn", "quarantine", "fail"]
Join = Literal["known", "copies", "images"]


@dataclass(frozen=True)
class Rule:
    """One rule of one table.

    `warn` rows stay and are counted; `quarantine` rows are set aside; `fail` stops, it concerns the table.
    A rule is applied where the table has its `column` and the columns it `needs`.
    """

    name: str
    severity: Severity
    column: str
    condition: str
    advice: str
    needs: tuple[str, ...] = ()
    joins: Join | None = None


#: The columns whose repetition makes a row a copy; the first in file order that breaks no other rule stays.
IDENTITY: dict[TableName, tuple[str, ...]] = {
    "products": ("product_id",),
    "relevance": ("query", "product_id", "source"),
    "impressions": ("impression_id",),
    "purchases": ("purchase_id",),
}

#: Variables of the validation session: the latest credible moment, and the last impression until then.
LATEST = "latest_credible_time"
LOG_ENDS = "log_ends"

#: How long after it an impression's click may count where no config says otherwise.
_WINDOW_HOURS = LabelConfig().attribution_hours

_IS_COPY = "{'file': r._file, 'row': r._row} > copies.first"


def _not_null(column: str) -> Rule:
    return Rule(
        f"null_{column}",
        "quarantine",
        column,
        is_missing_sql(f"r.{column}"),
        "it must not be null or blank; fill it in",
    )


def _blank(column: str, severity: Severity, consequence: str) -> Rule:
    return Rule(
        f"empty_{column}",
        severity,
        column,
        is_missing_sql(f"r.{column}"),
        f"it should hold text; {consequence}",
    )


def _copy(column: str) -> Rule:
    return Rule(
        f"duplicate_{column}",
        "quarantine",
        column,
        _IS_COPY,
        "an id must occur once; the first row is kept, so delete this copy or give it its own id",
        joins="copies",
    )


def _nobody(consequence: str) -> Rule:
    return Rule(
        "null_user_id",
        "warn",
        "user_id",
        is_missing_sql("r.user_id"),
        f"it was nobody that we know: {consequence}",
    )


_UNKNOWN_PRODUCT = Rule(
    "unknown_product",
    "quarantine",
    "product_id",
    f"NOT {is_missing_sql('r.product_id')} AND known.product_id IS NULL",
    "it must be in the products table (and not quarantined there); add the product or delete the row",
    joins="known",
)


def _credible(column: str) -> Rule:
    return Rule(
        f"incredible_{column}",
        "quarantine",
        column,
        f"r.{column} < TIMESTAMPTZ '1990-01-01 00:00:00+00' OR r.{column} > getvariable('{LATEST}')",
        "it must lie between 1990 and tomorrow; check the unit (seconds taken for milliseconds?) and the "
        "clock",
    )


_PRICE = Rule(
    "bad_price",
    "quarantine",
    "price",
    "r.price < 0 OR isinf(r.price::DOUBLE)",  # NaN is how pandas writes that it is not known
    "it must be finite and not negative; correct it, or write null when it is not known",
)

RULES: dict[TableName, tuple[Rule, ...]] = {
    "products": (
        _not_null("product_id"),
        _copy("product_id"),
        _PRICE,
        _blank("title", "warn", "text embeddings of this product mean nothing"),
        _blank("aisle", "warn", "its aisle counts as missing"),
        Rule(
            "unreadable_image",
            "warn",
            "image",
            "images.image IS NOT NULL",
            "the file must lie inside the folder and open as an image; it counts as missing until it does",
            joins="images",
        ),
    ),
    "relevance": (
        _not_null("product_id"),
        _blank("query", "quarantine", "a grade without a query says nothing; delete the row"),
        Rule(
            "grade_out_of_range",
            "quarantine",
            "grade",
            "r.grade IS NULL OR r.grade NOT IN (0, 1, 2)",
            "it must be 0 (irrelevant), 1 (moderate) or 2 (high); map other scales to these",
        ),
        _blank("source", "quarantine", "say who graded: human, llm, or a word of your own such as rule"),
        Rule(
            "duplicate_grade",
            "quarantine",
            "grade",
            f"{_IS_COPY} AND r.grade IS NOT DISTINCT FROM copies.grade",
            "one source grades a query and product once; the first row is kept, delete this copy",
            joins="copies",
        ),
        Rule(
            "conflicting_grade",
            "quarantine",
            "grade",
            f"{_IS_COPY} AND r.grade IS DISTINCT FROM copies.grade",
            "the same source graded this query and product differently before; keep the grade that is right",
            joins="copies",
        ),
        _UNKNOWN_PRODUCT,
    ),
    "impressions": (
        _not_null("impression_id"),
        _not_null("timestamp"),
        _nobody("no history, no counters of a user, and one row for all of nobody's impressions"),
        _not_null("product_id"),
        Rule(
            "clicked_not_0_or_1",
            "quarantine",
            "clicked",
            "r.clicked IS NULL OR r.clicked::BIGINT NOT IN (0, 1)",
            "it must be 0 or 1; an impression whose outcome is not known cannot teach anything",
        ),
        Rule(
            "click_before_impression",
            "quarantine",
            "click_timestamp",
            "r.click_timestamp < r.timestamp",
            "a click cannot come before its impression; check time zones and which column is which",
            needs=("timestamp",),
        ),
        Rule(
            "click_time_without_click",
            "warn",
            "click_timestamp",
            "r.click_timestamp IS NOT NULL AND r.clicked::BIGINT = 0",
            "clicked is 0 here, so it should be null",
            needs=("clicked",),
        ),
        Rule(
            "click_without_time",
            "warn",
            "click_timestamp",
            "r.click_timestamp IS NULL AND r.clicked::BIGINT = 1",
            "clicked is 1 here, so it should hold the moment of the click",
            needs=("clicked",),
        ),
        Rule(
            "click_after_log",
            "warn",
            "click_timestamp",
            f"r.click_timestamp - getvariable('{LOG_ENDS}') >= INTERVAL {_WINDOW_HOURS:g} HOUR "
            f"AND r.click_timestamp <= getvariable('{LATEST}')",
            f"it lies {_WINDOW_HOURS:g} hours or more after the log's last impression, so no label uses it "
            "(unless labels.attribution_hours is longer); check the clock, or whether the log was cut",
        ),
        _credible("click_timestamp"),
        _credible("timestamp"),
        _PRICE,
        _blank("query", "warn", "its query counts as missing"),
        _copy("impression_id"),
        _UNKNOWN_PRODUCT,
    ),
    "purchases": (
        _not_null("timestamp"),
        _nobody("the purchase is in no history"),
        _not_null("product_id"),
        _credible("timestamp"),
        Rule(
            "bad_quantity",
            "warn",
            "quantity",
            "r.quantity <= 0 OR NOT isfinite(r.quantity::DOUBLE)",
            "it should be above 0; returns do not belong into this table",
        ),
        _copy("purchase_id"),
        _UNKNOWN_PRODUCT,
    ),
}
