"""The probes of paper section 5 on the evidence page, from `probes.json` and `pictures/`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from embeddings.evaluation.probe_report import PAPER, TITLES
from experiments.reports.page import Grid, Plot, Section, png_source
from experiments.reports.records import Recorded, read_record

FILE = "probes.json"
TITLE = "What the vectors know"
QUESTION = "Do the vectors carry aisle and relevance, and more of it after training?"
NONE = "–"
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
        "Left before, right after training. The better the three curves part, the more the cosine alone says "
        "of relevance.",
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


class ProbeSide(BaseModel):
    """One probe on one encoder."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    macro_f1: float
    macro_f1_sd: float | None = None


class ProbeDifference(BaseModel):
    """After minus before."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    macro_f1: float
    macro_f1_low: float | None = None
    macro_f1_high: float | None = None


class Probe(BaseModel):
    """One probe before and after training."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    majority_macro_f1: float
    before: ProbeSide
    after: ProbeSide
    difference: ProbeDifference


class Encoder(BaseModel):
    """One encoder's cosines."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    name: str
    auc_high_vs_irrelevant: float | None = None


class ProbesRecord(Recorded):
    """`probes.json` as far as the page shows it."""

    before: Encoder
    after: Encoder
    probes: dict[str, Probe]


def probes_section(sweep: Path) -> Section | None:
    """Macro F1 of each probe before and after, and the pictures that exist; None if not measured.

    Raises:
        EvidenceError: the file is broken.
    """
    path = sweep / FILE
    record = read_record(path, ProbesRecord)
    if record is None:
        return None
    pictures = [(sweep / "pictures" / f"{name}.png", heading, caption) for name, heading, caption in PICTURES]
    absent = [found.name for found, _, _ in pictures if not found.exists()]
    return Section(
        anchor="probes",
        title=TITLE,
        question=QUESTION,
        answer=_answer(record),
        origin=record.origin(path),
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
        notes=(f"Pictures that were not drawn: {', '.join(absent)}.",) if absent else (),
    )


def _answer(record: ProbesRecord) -> str:
    better = worse = 0
    for probe in record.probes.values():
        low, high = probe.difference.macro_f1_low, probe.difference.macro_f1_high
        better += low is not None and low > 0
        worse += high is not None and high < 0
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


def _cosines(record: ProbesRecord) -> list[str]:
    before, after = record.before.auc_high_vs_irrelevant, record.after.auc_high_vs_irrelevant
    if before is None or after is None:
        return []
    return [
        "Without any classifier: a highly relevant product has a higher cosine than an irrelevant one in "
        f"{100 * before:.1f} % of pairs before training and in {100 * after:.1f} % after."
    ]


def _grid(record: ProbesRecord) -> Grid:
    rows = []
    bold = set()
    for number, (name, probe) in enumerate(record.probes.items()):
        found = probe.difference
        interval = NONE
        if found.macro_f1_low is not None and found.macro_f1_high is not None:
            interval = f"{found.macro_f1_low:+.3f} … {found.macro_f1_high:+.3f}"
            if found.macro_f1_low > 0 or found.macro_f1_high < 0:
                bold |= {(number, 4), (number, 5)}
        paper = " → ".join(f"{value:.3f}" for value in PAPER[name]) if name in PAPER else NONE
        title = TITLES.get(name, name).replace("\\|", "|")
        sides = (_side(probe.before), _side(probe.after))
        rows.append(
            (title, f"{probe.majority_macro_f1:.3f}", *sides, f"{found.macro_f1:+.3f}", interval, paper)
        )
    columns = ("Macro F1", "Most frequent class", record.before.name, record.after.name)
    return Grid(
        "Mean ± standard deviation over seeds. Bold: the 95 % interval excludes zero. The paper's numbers "
        "come from other products: only the direction compares.",
        (*columns, "Difference", "95 % interval", "Paper"),
        tuple(rows),
        frozenset(bold),
    )


def _side(side: ProbeSide) -> str:
    return f"{side.macro_f1:.3f}" + ("" if side.macro_f1_sd is None else f" ± {side.macro_f1_sd:.3f}")
