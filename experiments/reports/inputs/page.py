"""The page of a data folder: one self-contained HTML file."""

from pathlib import Path

from embeddings.embedding_table import is_table
from experiments.projects.survey import survey
from experiments.reports.inputs.facts import gather_facts
from experiments.reports.inputs.sections import input_sections
from experiments.reports.page import Absent, Section
from experiments.reports.sections_page import write_sections_page
from features.inputs.origin import Origin
from features.inputs.table_specs import TABLES
from features.inputs.tables import InputTables
from features.inputs.validation import validate
from features.progress import Progress, silent


def is_data_folder(folder: Path) -> bool:
    """Whether something in a folder has the name of an input table, in whatever format.

    A folder of vectors has a folder products/, too, but that is an embedding table.
    """
    if not folder.is_dir():
        return False
    named = [path for path in folder.iterdir() if path.name.partition(".")[0] in TABLES]
    return any(not is_table(path) for path in named)


def gather_inputs(data: Path, *, progress: Progress = silent) -> list[Section | Absent]:
    """What is in a data folder; every table is read, every row held to the rules, no image but a few opened.

    Raises:
        InputError: the tables cannot be used at all.
    """
    tables = InputTables.open(data)
    progress("counting", 0, 2)
    found = survey(data)
    progress("counting", 1, 2)
    facts = gather_facts(tables)
    progress("counting", 2, 2)
    checked = validate(data, check_images=False, progress=progress)
    return input_sections(tables, found, facts, checked)


def write_inputs_page(data: Path, out: Path, sections: list[Section | Absent]) -> Path:
    """Write `report.html` into `out`, whole or not at all."""
    origin = Origin.of(data)
    lead = "What the tables of this folder hold, counted when the page was made. Times are UTC."
    if origin.simulated is None:
        lead += " Nothing in the folder says where the tables come from."
    return write_sections_page(
        out,
        sections,
        title=f"What is in the folder {data.resolve().name}",
        lead=lead,
        origin=origin,
        command=f"dashclip report {data}",
        rests_on=" from the tables as they were then; none of its numbers is stored elsewhere.",
    )
