"""The probes of paper section 5 on the evidence page, from `probes.json` and `pictures/`."""

from pathlib import Path

from embeddings.evaluation.probe_report import ProbeReport
from experiments.reports.page import Grid, Plot, Section, png_source
from experiments.reports.probes_text import left_out_sentences, paper_cell, probe_title
from experiments.reports.records import origin_of, read_record
from experiments.statistics.cells import limits, with_sd
from experiments.statistics.intervals import excludes_zero, surely_negative, surely_positive

FILE = "probes.json"
TITLE = "What the vectors know"
QUESTION = "Do the vectors carry aisle and relevance, and more of it after training?"
#: Pictures in the order of the page: file name without suffix, heading, what to look for.
PICTURES = (
    (
        "tsne_by_aisle",
        "Products in the plane",
        "Each point is a product, near its likes; colour and shape are its aisle, which no training saw. "
        "Only who is near whom means something, not directions or distances between groups.",
    ),
    (
        "cosines_by_grade",
        "Cosine of product and query by grade",
        "The better the three curves part, the more the cosine alone says of relevance.",
    ),
    (
        "confusion_relevance_interactions_unseen_queries",
        "Relevance of unseen queries: what is taken for what",
        "In each row the share of pairs of one true grade, in percent, by what the probe answered; the "
        "diagonal is right. The probe also reads |p − q| and p · q.",
    ),
    (
        "confusion_relevance",
        "Relevance, the paper's probe: what is taken for what",
        "The probe reads the two vectors side by side, split over pairs as in the paper.",
    ),
    ("recall_by_aisle", "Aisles found, one by one", "Share of each aisle's products that the probe names."),
)


_WIDE = {heading for name, heading, _ in PICTURES if name in ("tsne_by_aisle", "cosines_by_grade")}


def probes_section(sweep: Path) -> Section | None:
    """Macro F1 of each probe before and after, and the pictures that exist; None if not measured.

    Raises:
        EvidenceError: the file is broken.
    """
    path = sweep / FILE
    record = read_record(path, ProbeReport)
    if record is None:
        return None
    pictures = [(sweep / "pictures" / f"{name}.png", heading, caption) for name, heading, caption in PICTURES]
    absent = [found.name for found, _, _ in pictures if not found.exists()]
    return Section(
        anchor="probes",
        title=TITLE,
        question=QUESTION,
        answer=_answer(record),
        origin=origin_of(path, record.command, record.environment),
        sentences=(
            "A probe is a small classifier on frozen vectors: what it can learn, the vectors must hold. "
            "Macro F1 weighs every class the same, rare ones too; 1 is perfect.",
            *_cosines(record),
        ),
        grids=(_grid(record),),
        plots=tuple(
            Plot(heading, caption, png_source(found.read_bytes()), narrow=heading not in _WIDE)
            for found, heading, caption in pictures
            if found.exists()
        ),
        notes=(
            *left_out_sentences(record),
            *([f"Pictures that were not drawn: {', '.join(absent)}."] if absent else ()),
        ),
    )


def _answer(record: ProbeReport) -> str:
    better = sum(surely_positive(probe.difference) for probe in record.probes.values())
    worse = sum(surely_negative(probe.difference) for probe in record.probes.values())
    verdict = f"{better} of {len(record.probes)} probes improve with training"
    if worse:
        verdict += f" and {worse} get worse"
    shown = [
        f"{title} {record.probes[name].before.macro_f1:.3f} → {record.probes[name].after.macro_f1:.3f}"
        for name, title in (
            ("aisle", "aisle"),
            ("relevance_interactions_unseen_queries", "relevance of unseen queries"),
            ("relevance", "relevance as in the paper"),
        )
        if name in record.probes
    ]
    return f"{verdict} (macro F1: {'; '.join(shown)})." if shown else f"{verdict}."


def _by(name: str) -> str:
    """ "before stage 1" as it is, any other name as "by NAME"."""
    return name if name.startswith(("before ", "after ")) else f"by {name}"


def _cosines(record: ProbeReport) -> list[str]:
    before, after = record.before.auc_high_vs_irrelevant, record.after.auc_high_vs_irrelevant
    if before is None or after is None:
        return []
    return [
        "Without any classifier: a highly relevant product has a higher cosine than an irrelevant one in "
        f"{100 * before:.1f} % of pairs {_by(record.before.name)} and in {100 * after:.1f} % "
        f"{_by(record.after.name)}."
    ]


def _grid(record: ProbeReport) -> Grid:
    rows = []
    bold = set()
    for number, (name, probe) in enumerate(record.probes.items()):
        found = probe.difference
        if excludes_zero(found):
            bold |= {(number, 4), (number, 5)}
        rows.append(
            (
                probe_title(name),
                f"{probe.majority_macro_f1:.3f}",
                *(with_sd(side.macro_f1, side.macro_f1_sd, 3) for side in (probe.before, probe.after)),
                f"{found.mean:+.3f}",
                limits(found, 3, sign=True),
                paper_cell(name),
            )
        )
    columns = ("Macro F1", "Most frequent class", record.before.name, record.after.name)
    return Grid(
        "Mean ± standard deviation over seeds. Bold: the 95 % interval excludes zero. The paper's numbers "
        "come from other products: only the direction compares.",
        (*columns, "Difference", "95 % interval", "Paper"),
        tuple(rows),
        frozenset(bold),
    )
