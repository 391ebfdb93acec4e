"""What `mapping.toml` says: which file is which table, which column is which, and how values are read.

A column that the mapping does not name is looked for under its own name. Everything that loses or adds
something (a table that is absent, a column left out, clicks made of ratings, negatives that nobody saw) has
to be said here.
"""

from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from features.artifacts import StrictModel
from features.inputs.table_specs import TABLES, ColumnSpec, TableName


def _named(value: Any) -> Any:
    """`"sku"` stands for `{column = "sku"}`."""
    return {"column": value} if isinstance(value, str) else value


class TextColumn(StrictModel):
    """A text or id as it stands in a column, or one `value` for all rows."""

    #: Its name in the source.
    column: str | None = None
    #: What all rows have instead.
    value: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.column is None) == (self.value is None):
            raise ValueError("give either column or value")
        return self


class NumberColumn(StrictModel):
    """A number; "NaN" and blanks are null. With a `currency`, "12.99 EUR" and "EUR 12.99" are 12.99."""

    #: Its name in the source.
    column: str
    #: What parts whole from fraction; the other of the two may part thousands.
    decimal: Literal[".", ","] = "."
    #: A word or sign that values may carry. Values with any other are refused.
    currency: str | None = None


class TimeColumn(StrictModel):
    """A moment: text of ISO 8601 or of a `format`, a number of `unit`s since 1970, or a stored timestamp."""

    #: Its name in the source.
    column: str
    #: As of strptime: "%d.%m.%Y %H:%M". ISO 8601 if not given.
    format: str | None = None
    #: What numbers count since 1970 in UTC.
    unit: Literal["s", "ms", "us", "ns"] | None = None
    #: Where the clock hung that wrote times without an offset, as "Europe/Berlin"; "UTC" is one, too.
    zone: str | None = None
    #: Which of the two moments a local time means that the end of summer time makes occur twice.
    ambiguous: Literal["refuse", "earlier", "later"] = "refuse"

    @model_validator(mode="after")
    def _zone_is_known(self) -> Self:
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError):
                raise ValueError(
                    "zone must be a name of the time zone database, such as 'Europe/Berlin' or 'UTC', not "
                    f"{self.zone!r}"
                ) from None
        if self.format is not None and self.unit is not None:
            raise ValueError("give format (for text) or unit (for numbers), not both")
        return self


class FlagColumn(StrictModel):
    """0 or 1: as it stands (0, 1, true, false), by words, or by a threshold: ratings become clicks."""

    #: Its name in the source.
    column: str
    #: A number at least this high is 1, a lower one 0.
    at_least: float | None = None
    #: Values that are 1; all others are 0.
    yes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.at_least is not None and self.yes is not None:
            raise ValueError("give at_least (for numbers) or yes (for words), not both")
        return self


class GradeColumn(StrictModel):
    """A grade 0, 1, 2: as it stands, by words, or by two limits of a number."""

    #: Its name in the source.
    column: str
    #: The grade of each word.
    values: dict[str, Annotated[int, Field(ge=0, le=2)]] | None = None
    #: A number below the first is 0, below the second 1, else 2.
    limits: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.values is not None and self.limits is not None:
            raise ValueError("give values (for words) or limits (for numbers), not both")
        if self.limits is not None and self.limits[0] >= self.limits[1]:
            raise ValueError(f"limits must rise, got {self.limits[0]:g} and {self.limits[1]:g}")
        return self


Text = Annotated[TextColumn, BeforeValidator(_named)] | None
Number = Annotated[NumberColumn, BeforeValidator(_named)] | None
Time = Annotated[TimeColumn, BeforeValidator(_named)] | None
Flag = Annotated[FlagColumn, BeforeValidator(_named)] | None
Grade = Annotated[GradeColumn, BeforeValidator(_named)] | None
ColumnMapping = TextColumn | NumberColumn | TimeColumn | FlagColumn | GradeColumn


def may_be_absent(table: TableName, spec: ColumnSpec) -> bool:
    """Whether a column may be null in all rows: texts, and the users of impressions."""
    return spec.kind == "text" or (table, spec.name) == ("impressions", "user_id")


class ProductColumns(StrictModel):
    """Where the columns of products stand."""

    product_id: Text = None
    title: Text = None
    aisle: Text = None
    image: Text = None
    price: Number = None
    brand: Text = None
    description: Text = None


class RelevanceColumns(StrictModel):
    """Where the columns of relevance stand."""

    query: Text = None
    product_id: Text = None
    grade: Grade = None
    source: Text = None
    intent: Text = None
    p_ir: Number = None
    p_mr: Number = None
    p_hr: Number = None
    grader: Text = None
    prompt_sha: Text = None


class ImpressionColumns(StrictModel):
    """Where the columns of impressions stand."""

    impression_id: Text = None
    timestamp: Time = None
    user_id: Text = None
    query: Text = None
    product_id: Text = None
    clicked: Flag = None
    click_timestamp: Time = None
    price: Number = None


class PurchaseColumns(StrictModel):
    """Where the columns of purchases stand."""

    timestamp: Time = None
    user_id: Text = None
    product_id: Text = None
    purchase_id: Text = None
    quantity: Number = None


class TableMapping(StrictModel):
    """What holds of every table."""

    #: A file or folder of files in SOURCE; the table's own name with any known ending if not given.
    file: str | None = None
    #: What parts fields of CSV; found in the first line if not given.
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    #: Of text files.
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    #: Text columns that the source does not have: they become null. Users of impressions may be absent, too.
    absent: tuple[str, ...] = ()
    #: Columns that no rule names: all kept, all dropped, or the named ones kept.
    further: Literal["keep", "drop"] | tuple[str, ...] = "drop"


class ProductsMapping(TableMapping):
    """The catalogue."""

    columns: ProductColumns = ProductColumns()
    #: No catalogue: one row for each product of the logs and grades, with nothing but its id.
    from_logs: bool = False


class RelevanceMapping(TableMapping):
    """Grades."""

    columns: RelevanceColumns = RelevanceColumns()


class ConstructedImpressions(StrictModel):
    """Impressions that nobody saw, for a log of purchases alone: each purchase a click, beside it negatives.

    Candidates of a moment are the products that were bought before it, by anybody. Negatives are drawn from
    them without those that the user bought at that moment. The first purchase of a product is none of the
    candidates and makes no impression: nothing but a click could be said of it.
    """

    #: Products beside each purchase.
    negatives: Annotated[int, Field(ge=1, le=1000)] = 4
    #: `popular`: as often as bought so far, so that popularity is no clue; `uniform`: all alike.
    draw: Literal["popular", "uniform"] = "popular"
    #: Of the draw; equal seeds give equal impressions.
    seed: int = 0


class ImpressionsMapping(TableMapping):
    """What was shown, and whether it was clicked."""

    columns: ImpressionColumns = ImpressionColumns()
    constructed: ConstructedImpressions | None = None


class PurchasesMapping(TableMapping):
    """What was bought."""

    columns: PurchaseColumns = PurchaseColumns()
    #: No purchases: a clicked impression (a film that was liked) counts as one, at the moment of its click.
    from_clicks: bool = False


class ImportMapping(StrictModel):
    """A whole `mapping.toml`.

    >>> mapping = ImportMapping.model_validate({"products": {"columns": {"product_id": "sku"}}})
    >>> mapping.products.columns.product_id.column
    'sku'
    """

    products: ProductsMapping = ProductsMapping()
    relevance: RelevanceMapping = RelevanceMapping()
    impressions: ImpressionsMapping = ImpressionsMapping()
    purchases: PurchasesMapping = PurchasesMapping()

    @model_validator(mode="after")
    def _tables_are_not_made_of_each_other(self) -> Self:
        if self.impressions.constructed is not None and self.purchases.from_clicks:
            raise ValueError(
                "impressions.constructed makes impressions of purchases and purchases.from_clicks makes "
                "purchases of impressions; leave one out"
            )
        makers: tuple[tuple[TableName, bool, str], ...] = (
            ("products", self.products.from_logs, "from_logs"),
            ("impressions", self.impressions.constructed is not None, "constructed"),
            ("purchases", self.purchases.from_clicks, "from_clicks"),
        )
        for name, made, key in makers:
            if made and self.table(name).file is not None:
                raise ValueError(f"{name}.file names a table and {name}.{key} makes one; leave one out")
        for table in TABLES:
            for column in self.table(table).absent:
                self._check_absent(table, column)
        return self

    def _check_absent(self, table: TableName, column: str) -> None:
        spec = TABLES[table].column(column)
        may_lack = [found.name for found in TABLES[table].columns if may_be_absent(table, found)]
        if spec is None or spec.name not in may_lack:
            raise ValueError(
                f"{table}.absent names {column!r}; only these columns can be absent: {', '.join(may_lack)}"
            )
        if getattr(self.table(table).columns, column) is not None:
            raise ValueError(f"{table}.columns.{column} maps what {table}.absent says is not there")

    def table(
        self, name: TableName
    ) -> ProductsMapping | RelevanceMapping | ImpressionsMapping | PurchasesMapping:
        """The mapping of one table."""
        found: ProductsMapping | RelevanceMapping | ImpressionsMapping | PurchasesMapping = getattr(
            self, name
        )
        return found
