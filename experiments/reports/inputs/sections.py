"""The sections of the page of a data folder, each a question that a new data set raises."""

import shlex

from experiments.projects.configs import has_grades, trains_encoders
from experiments.projects.project import findings
from experiments.projects.survey import EXACT_ROWS, ColumnFacts, Survey
from experiments.reports.inputs.facts import Facts
from experiments.reports.inputs.log_sections import frequencies_section, log_section, purchases_section
from experiments.reports.page import Absent, Gallery, Grid, Section
from experiments.reports.tiles import price_text, product_tile
from experiments.statistics.cells import NONE, share
from features.inputs.findings import ValidationReport
from features.inputs.table_specs import TABLES
from features.inputs.tables import InputTables

_GRADES = {0: "irrelevant", 1: "moderate", 2: "high"}


def input_sections(
    tables: InputTables, survey: Survey, facts: Facts, checked: ValidationReport
) -> list[Section | Absent]:
    """All sections in the order of the page; what the folder lacks is said where it would stand."""
    return [
        _volumes(tables, survey, facts),
        _columns(tables, survey),
        _rows(checked),
        log_section(survey),
        frequencies_section(facts),
        purchases_section(survey, facts),
        _grades(survey, facts),
        _images(survey, facts),
        _models(tables, survey),
    ]


def _volumes(tables: InputTables, survey: Survey, facts: Facts) -> Section:
    rows = [
        (
            name,
            f"{tables.rows(name):,}",
            f"{len(tables.files(name)):,}",
            f"{facts.sizes[name] / 1e6:,.1f}",
            f"{len(tables.columns(name))}",
        )
        for name in tables.tables
    ]
    lacking = [name for name in TABLES if name not in tables.tables]
    counts = [f"{survey.products:,} products"]
    counts += [f"{survey.impressions:,} impressions"] if survey.impressions else []
    counts += [f"{survey.purchases:,} purchases"] if survey.purchases else []
    counts += [f"{survey.graded_pairs:,} graded pairs"] if survey.graded_pairs else []
    answer = f"{', '.join(counts)}."
    if lacking:
        answer += f" There is no table of {' and none of '.join(lacking)}."
    return Section(
        anchor="volumes",
        title="Tables",
        question="What is in this folder?",
        answer=answer,
        origin=None,
        sentences=tuple(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in findings(survey)),
        grids=(Grid("", ("Table", "Rows", "Files", "MB on disk", "Columns"), tuple(rows)),),
    )


def _columns(tables: InputTables, survey: Survey) -> Section:
    empty = [column for column in survey.columns if column.filled == 0]
    gaps = [column for column in survey.columns if 0 < column.filled < column.rows]
    total = len(survey.columns)
    answer = f"{total - len(empty) - len(gaps)} of {total} columns are filled in every row"
    if gaps:
        worst = min(gaps, key=lambda column: column.filled / column.rows)
        answer += f"; the least filled is {worst.table}.{worst.name} with {share(worst.filled, worst.rows)}"
    answer += f"; {len(empty)} hold nothing at all." if empty else "."
    return Section(
        anchor="columns",
        title="Columns",
        question="Which columns are there, and how well are they filled?",
        answer=answer,
        origin=None,
        grids=tuple(
            Grid(
                f"{name}, {tables.rows(name):,} rows.{_estimated(tables.rows(name))}",
                ("Column", "Meaning", "Type", "Null", "Distinct", "Least", "Greatest"),
                tuple(_column_row(c) for c in survey.columns if c.table == name),
                text_columns=3,
            )
            for name in tables.tables
        ),
        notes=(
            "A column without a meaning here is an attribute of yours; a feature reads it where "
            "features.toml names it.",
        ),
    )


def _estimated(rows: int) -> str:
    return "" if rows <= EXACT_ROWS else " Distinct values are estimates, within a few percent."


def _column_row(column: ColumnFacts) -> tuple[str, ...]:
    declared = TABLES[column.table].column(column.name)
    ranged = declared is None or declared.kind != "id"
    return (
        column.name,
        declared.meaning if declared else "",
        column.arrow.replace("timestamp[us, tz=UTC]", "time, UTC"),
        share(column.rows - column.filled, column.rows),
        f"{column.distinct:,}" if column.distinct else NONE,
        *((end if ranged and end is not None else "") for end in (column.low, column.high)),
    )


def _rows(checked: ValidationReport) -> Section:
    broken = [(name, rule) for name, found in checked.tables.items() for rule in found.broken]
    kept_out = sum(found.quarantined for found in checked.tables.values())
    total = sum(found.rows for found in checked.tables.values())
    if checked.failures:
        answer = f"No: {checked.failures[0]}"
    elif kept_out:
        answer = f"Almost: {kept_out:,} of {total:,} rows break a rule, and no feature may be made of them."
    elif broken:
        answer = f"Yes: none of {total:,} rows has to be left out, but some call for a look."
    else:
        answer = f"Yes: all {total:,} rows keep every rule."
    rows = tuple(
        (f"{name}.{rule.column}", rule.sentence, rule.severity, f"{rule.rows:,}", share(rule.rows, found))
        for name, rule in broken
        if (found := checked.tables[name].rows)
    )
    grid = Grid(
        'With the first row of each. "quarantine": the row is left out; "warn": it stays.',
        ("Column", "What is wrong", "Severity", "Rows", "Share"),
        rows,
        text_columns=3,
    )
    return Section(
        anchor="rows",
        title="Rows against the rules",
        question="Can every row be used?",
        answer=answer,
        origin=None,
        grids=(grid,) if rows else (),
        notes=(f"Images were not opened for this; dashclip validate {checked.data} opens each.",),
    )


def _grades(survey: Survey, facts: Facts) -> Section | Absent:
    heading = ("grades", "Grades", "Who graded which pairs of query and product?")
    if not facts.grades:
        reason = (
            "There is no table of relevance: encoders stop after stage 1, and table 1 cannot be measured."
        )
        return Absent(*heading, reason, "dashclip grade --help")
    counts = {
        source: [facts.grades.get((source, grade), 0) for grade in _GRADES] for source in survey.sources
    }
    rows = tuple(
        (
            source,
            f"{sum(found):,}",
            *(f"{pairs:,} ({share(pairs, sum(found))})" for pairs in found),
        )
        for source, found in counts.items()
        if sum(found)
    )
    enough = "" if has_grades(survey) else ": too few queries for stage 2"
    return Section(
        *heading,
        answer=(
            f"{survey.graded_pairs:,} pairs of {survey.graded_queries:,} queries were graded, by "
            f"{', '.join(survey.sources)}{enough}."
        ),
        origin=None,
        grids=(
            Grid(
                "Pairs by whose grade it is.",
                ("Source", "Pairs", *(f"{grade} {name}" for grade, name in _GRADES.items())),
                rows,
            ),
        ),
    )


def _images(survey: Survey, facts: Facts) -> Section | Absent:
    heading = ("images", "Images", "What do the products look like?")
    if not survey.images:
        reason = "No product has an image: encoders read titles alone."
        return Absent(*heading, reason, None)
    tiles = [product_tile(one.image, (one.title, one.aisle, price_text(one.price))) for one in facts.pictured]
    broken = sum(tile.picture is None for tile in tiles)
    answer = f"{share(survey.images, survey.products)} of the products name an image"
    if survey.readable_images < survey.images_tried:
        answer += f"; of {survey.images_tried} that were opened, {survey.readable_images} can be read"
    return Section(
        *heading,
        answer=f"{answer}.",
        origin=None,
        galleries=(
            Gallery(
                "",
                f"{len(tiles)} products, evenly spread over the table: title, aisle, price. Made small and "
                "compressed for this page."
                + (f" {broken} of these pictures cannot be read." if broken else ""),
                tuple(tiles),
            ),
        ),
    )


def _models(tables: InputTables, survey: Survey) -> Section:
    """What can be trained on this, what not, and the next command."""
    rankers = 0 < survey.clicks < survey.impressions
    stages = [
        *(["stage 1 of the encoders (images and titles)"] if survey.has_images else []),
        *(["stage 2 (grades)"] if has_grades(survey) else []),
        *(["rankers (clicks)"] if rankers else []),
    ]
    can = f"It is enough for {', '.join(stages)}." if stages else "It is not enough to train anything."
    lacks = [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in tables.absences]
    lacks += _shortcomings(survey)
    data = shlex.quote(str(survey.data))
    steps = [(f"dashclip validate {data} --out runs/checked", "every row and image against named rules")]
    if rankers or trains_encoders(survey):
        steps.append(
            (f"dashclip init {data} project", "configs that fit, and a README of all further commands")
        )
    return Section(
        anchor="models",
        title="What it is enough for",
        question="What can be trained on this, and what is missing?",
        answer=can,
        origin=None,
        sentences=tuple(lacks) or ("Nothing that the models can use is missing.",),
        grids=(Grid("Next.", ("Command", "What it does"), tuple(steps), text_columns=2),),
    )


def _shortcomings(survey: Survey) -> list[str]:
    said = []
    if survey.images and not survey.has_images:
        said.append("Most images that were tried cannot be read, so encoders read titles alone.")
    if survey.impressions and not 0 < survey.clicks < survey.impressions:
        said.append("All impressions have the same outcome: check the column clicked.")
    if 0 < survey.days < 15:
        said.append(
            f"{survey.days} days are fewer than the 15 of the usual split (7 to test, 7 to decide when to "
            "stop): dashclip init writes a smaller one."
        )
    if survey.graded_pairs and not has_grades(survey):
        said.append(f"{survey.graded_queries:,} graded queries are too few for stage 2 and table 1.")
    if survey.impressions and survey.column("impressions", "click_timestamp") is None:
        said.append("No click_timestamp: a click counts as of the moment of its impression.")
    if survey.impressions and survey.column("impressions", "position") is None:
        said.append("No position: the effect of the place on a page cannot be told from that of the product.")
    return said
