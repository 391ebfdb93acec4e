"""The page of an online experiment: one self-contained HTML file, and the same words as Markdown."""

from pathlib import Path

from experiments.abtest.result import RESULT, AbtestResult
from experiments.reports.abtest.sections import abtest_sections
from experiments.reports.sections_page import write_sections_page
from experiments.reports.sections_text import MARKDOWN, sections_markdown
from features.artifacts import atomic_write_bytes
from features.inputs.origin import Origin


def write_abtest_report(result: AbtestResult, out: Path, *, command: str) -> list[Path]:
    """Write `result.json`, `report.md` and `report.html` into `out`, each whole or not at all."""
    sections = abtest_sections(result)
    title = f"Online experiment: {result.treatment} against {result.control}"
    lead = (
        f"Experiment {result.name}, {result.first_day} to {result.last_day}. Lifts of the challenger "
        f"({result.treatment}) over the control ({result.control}) are relative, and a user is one "
        "observation, whatever it did."
    )
    result.write(out / RESULT)
    kind = "**Simulated data.** " if result.simulated else ""
    atomic_write_bytes(out / MARKDOWN, sections_markdown(sections, title=title, lead=kind + lead).encode())
    page = write_sections_page(
        out,
        sections,
        title=title,
        lead=lead,
        origin=Origin(simulated=result.simulated),
        command=command,
        rests_on=f" from the tables of the experiment; its numbers are in {RESULT}.",
        facts=(
            (f"{result.consumers:,}", "users"),
            (f"{result.days}", "days"),
            (result.decision.verdict, "decision"),
        ),
    )
    return [out / RESULT, out / MARKDOWN, page]
