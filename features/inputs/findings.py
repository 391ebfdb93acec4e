"""What a validation found: per table and rule, how many rows, which share, and where the first one is."""

from dataclasses import asdict, dataclass
from typing import Any

from features.inputs.rules import Severity
from features.inputs.table_specs import TableName
from features.inputs.tables import InputError


@dataclass(frozen=True)
class Example:
    """The first row that breaks a rule; rows count from 0 within their file, as in an Arrow table."""

    file: str
    row: int
    value: str | None

    def __str__(self) -> str:
        return f"{self.file} row {self.row}"


@dataclass(frozen=True)
class RuleFinding:
    """One rule on one table. `share` is rows / rows of the table."""

    rule: str
    severity: Severity
    column: str
    rows: int
    share: float
    example: Example | None
    advice: str

    @property
    def sentence(self) -> str:
        """Where, what came, what must hold and what to do."""
        if self.example is None:
            return f"column {self.column!r}: {self.advice}"
        came = "null" if self.example.value is None else repr(self.example.value)
        return f"{self.example}, column {self.column!r} is {came}: {self.advice}"


@dataclass(frozen=True)
class TableFinding:
    """One table: every rule that was applied, broken or not."""

    rows: int
    quarantined: int
    rules: tuple[RuleFinding, ...]

    @property
    def share(self) -> float:
        """Quarantined rows / rows; 1 bad row of 4 gives 0.25."""
        return self.quarantined / self.rows

    @property
    def broken(self) -> tuple[RuleFinding, ...]:
        """The rules that some row, or the table, breaks."""
        return tuple(finding for finding in self.rules if finding.rows)


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of `features.inputs.validation.validate`."""

    data: str
    max_bad_share: float
    tables: dict[TableName, TableFinding]
    absences: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the tables can be used once the quarantined rows are left out."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Do nothing if it passed.

        Raises:
            InputError: with the first failure, and how many more there are.
        """
        if self.failures:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            raise InputError(self.failures[0] + more)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `tables.<name>.rules` lists every applied rule, also those that no row breaks."""
        tables = {name: {"share": table.share, **asdict(table)} for name, table in self.tables.items()}
        return {
            "format": 1,
            "data": self.data,
            "passed": self.passed,
            "max_bad_share": self.max_bad_share,
            "failures": list(self.failures),
            "absences": list(self.absences),
            "tables": tables,
        }
