"""Row checks of the input tables: a report, a quarantine that can be fed back, and a clean copy.

Nothing is dropped silently: every row of the input is in the clean copy or in the quarantine.
"""

import itertools
import math
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import (
    atomic_folder,
    atomic_write_json,
    json_file_has,
    link_or_copy,
    refuse_foreign_folder,
)
from features.inputs.findings import RuleFinding, TableFinding, ValidationReport
from features.inputs.row_checks import QUARANTINE_COLUMNS, RowChecks, open_row_checks
from features.inputs.table_specs import TABLES, TableName
from features.inputs.tables import InputError, InputTables, sql_text
from features.progress import Progress, silent

_BATCH_ROWS = 65_536
#: In every clean copy; without it one could not be told from tables that somebody made.
_CLEAN_MARK = "clean_copy.json"


def validate(
    data: Path,
    *,
    quarantine: Path | None = None,
    clean: Path | None = None,
    max_bad_share: float = 0.01,
    memory_limit: str = "2GB",
    threads: int = 2,
    now: datetime | None = None,
    check_images: bool = True,
    progress: Progress = silent,
) -> ValidationReport:
    """Hold every row of the tables to the rules of `features.inputs.rules`.

    Args:
        quarantine: folder that receives one Parquet file per table with quarantined rows: their own columns
            plus `_reason` (rule names), `_file` and `_row`. Corrected rows can be added to the input as they
            are: the three columns are ignored there. Written also when the validation fails.
        clean: folder that receives the same files without the quarantined rows, in their order and types,
            with the readable images and the JSON files beside them. Not written when the validation fails.
        max_bad_share: share of quarantined rows of a table, above which the validation fails.
        now: a timestamp more than a day after it is not credible; the present if None.
        check_images: whether to open the images; a clean copy always does.

    Raises:
        InputError: a table cannot be opened at all (see `InputTables.open`), or not be read to its end.
        FileExistsError: `quarantine` or `clean` holds something that an earlier validation did not write.
    """
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share must lie in [0, 1], not {max_bad_share}")
    for target in (quarantine, clean):
        if target is not None and target.resolve() in (data.resolve(), *data.resolve().parents):
            raise InputError(f"{target} would replace the input {data}; choose another folder")
    for target, ours in ((quarantine, _is_quarantine), (clean, _is_clean_copy)):
        if target is not None:
            refuse_foreign_folder(target, ours=ours)
    tables = InputTables.open(data)
    names: list[TableName] = [name for name in TABLES if tables.has(name)]
    findings: dict[TableName, TableFinding] = {}
    with open_row_checks(tables, memory_limit=memory_limit, threads=threads, now=now) as checks:
        if check_images or clean is not None:
            checks.check_images(threads=threads, progress=progress)
        for step, name in enumerate(names):
            progress(f"checking {name}", step, len(names))
            findings[name] = checks.judge(name)
        failures = [_too_bad(name, findings[name], max_bad_share) for name in names]
        whole_tables: dict[TableName, RuleFinding | None] = {
            "impressions": checks.single_class(),
            "products": checks.no_readable_image(),
            "purchases": checks.no_common_user(),
        }
        for name, found in whole_tables.items():
            if found:
                seen = findings[name]
                findings[name] = TableFinding(seen.rows, seen.quarantined, (*seen.rules, found))
                if found.severity == "fail":
                    failures.append(found.sentence)
        said = tuple(failure for failure in failures if failure)
        if quarantine is not None:
            progress("writing the quarantine", 0, 1)
            _write_quarantine(checks, findings, quarantine)
        if clean is not None and not said:
            progress("writing the clean copy", 0, 1)
            _write_clean(checks, findings, clean)
    progress("done", 1, 1)
    return ValidationReport(str(data), max_bad_share, findings, tables.absences, said)


def check_or_raise(
    tables: InputTables,
    *,
    memory_limit: str = "2GB",
    threads: int = 2,
    now: datetime | None = None,
) -> None:
    """Refuse tables of which any row would be quarantined: what a feature build does before it starts.

    One scan per table that features read (not relevance), without images and warnings.

    Raises:
        InputError: names rule, file, column and the first row, and how to separate good rows from bad.
    """
    names: tuple[TableName, ...] = ("products", "impressions", "purchases")
    with open_row_checks(tables, memory_limit=memory_limit, threads=threads, now=now) as checks:
        checks.take_all_products_as_known()
        for name in names:
            if not tables.has(name) or not checks.any_bad_row(name):
                continue
            finding = checks.judge(name)
            worst = next(rule for rule in finding.broken if rule.severity == "quarantine")
            raise InputError(
                f"{worst.sentence} ({finding.quarantined:,} of {finding.rows:,} rows of {name} break a rule; "
                "`dashclip validate DATA --out OUT --write-clean` separates them from the good ones)"
            )
        single = checks.single_class()
        if single:
            raise InputError(single.sentence)


def _too_bad(table: TableName, finding: TableFinding, max_bad_share: float) -> str | None:
    nothing_left = finding.quarantined == finding.rows
    if finding.share <= max_bad_share and not nothing_left:
        return None
    first = next(rule for rule in finding.broken if rule.severity == "quarantine")
    allowed = "which leaves nothing" if nothing_left else f"more than the {max_bad_share:.2%} allowed"
    enough = math.ceil(finding.share * 100) / 100
    aside = (
        f"`dashclip validate DATA --out OUT --write-clean --max-bad-share {enough:g}` goes on without them"
    )
    return (
        f"{first.sentence}; in all {finding.quarantined:,} of {finding.rows:,} rows of {table} "
        f"({finding.share:.2%}) break a rule, {allowed}: correct them"
        + ("" if nothing_left else f", or {aside}")
    )


def _is_quarantine(folder: Path) -> bool:
    """Whether all in it is quarantined rows, which say why they are there."""
    files = {f"{table}.parquet" for table in TABLES}
    try:
        return all(
            path.name in files and "_reason" in pq.read_schema(path).names for path in folder.iterdir()
        )
    except (pa.ArrowException, OSError):
        return False


def _is_clean_copy(folder: Path) -> bool:
    return json_file_has(folder / _CLEAN_MARK, "clean_copy_of")


def _write_quarantine(checks: RowChecks, findings: dict[TableName, TableFinding], folder: Path) -> None:
    with atomic_folder(folder, ours=_is_quarantine) as target:
        for table, finding in findings.items():
            if finding.quarantined:
                path = sql_text(str(target / f"{table}.parquet"))
                rows = checks.quarantined_rows_sql(table)
                checks.run(f"COPY ({rows}) TO {path} (FORMAT parquet, COMPRESSION zstd)")


def _write_clean(checks: RowChecks, findings: dict[TableName, TableFinding], folder: Path) -> None:
    tables = checks.tables
    with atomic_folder(folder, ours=_is_clean_copy) as target:
        for table, finding in findings.items():
            left_out = 0
            for source in tables.files(table):
                name = str(source.relative_to(tables.root))
                quarantined = checks.quarantined_places(table, name)
                _write_good_rows(source, target / name, quarantined)
                left_out += len(quarantined)
            assert left_out == finding.quarantined, "a quarantined row is in the clean copy"
        for description in sorted(tables.root.glob("*.json")):
            shutil.copy2(description, target / description.name)
        atomic_write_json(target / _CLEAN_MARK, {"clean_copy_of": str(tables.root)})
        if "image" in tables.columns("products"):
            for image in checks.readable_images():
                link_or_copy(tables.root / image, target / image)


def _write_good_rows(source: Path, target: Path, quarantined: npt.NDArray[np.int64]) -> None:
    """Copy a Parquet file without some of its rows, a batch at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(source) as reader:
        columns = [name for name in reader.schema_arrow.names if name not in QUARANTINE_COLUMNS]
        schema = pa.schema([reader.schema_arrow.field(name) for name in columns])
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            start = 0
            for batch in reader.iter_batches(_BATCH_ROWS, columns=columns):
                end = start + batch.num_rows
                first, last = np.searchsorted(quarantined, [start, end])
                # Rows from each bad one to the next, as Arrow can slice columns of types it cannot filter.
                edges = [start - 1, *quarantined[first:last].tolist(), end]
                good = [batch.slice(a + 1 - start, b - a - 1) for a, b in itertools.pairwise(edges)]
                writer.write_table(pa.Table.from_batches(good, schema))
                start = end
