"""How the stages of an encoder went, on its evidence page: from the records of their runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from embeddings.stages.run_folder import TRAINING
from embeddings.training.evaluation import AT_CHANCE, ROWS, learned_nothing, no_better_than_chance
from experiments.reports.page import Grid, Plot, Section, listed, svg_source
from experiments.reports.records import origin_of, read_record
from experiments.reports.sections import plots as evidence_plots
from experiments.statistics.cells import number

TITLE = "Training: what each stage learned"
QUESTION = "Has each stage learned something?"
#: Stages in their order, as their records call them.
STAGES = {
    "warmup": "text warm-up",
    "image_warmup": "image warm-up",
    "pretrain": "stage 1",
    "align": "stage 2",
}


class Outcome(BaseModel):
    """How a run went, as far as the page shows it."""

    steps: int
    best_step: int
    best: dict[str, float]
    history: list[dict[str, float]]
    stopped_early: bool


class TrainingRecord(BaseModel):
    """`training.json` as far as the page shows it."""

    settings: dict[str, Any]
    counts: dict[str, float | None]
    outcome: Outcome

    @property
    def stage(self) -> str:
        """What the stage is called."""
        name = str(self.settings.get("stage", "a stage"))
        return STAGES.get(name, name)


def training_records(folder: Path) -> dict[Path, TrainingRecord]:
    """The finished runs of stages in a folder, at any depth, in the order of the stages.

    Raises:
        EvidenceError: a record is broken.
    """
    found = {path: read_record(path, TrainingRecord) for path in sorted(folder.rglob(TRAINING))}
    records = {path: record for path, record in found.items() if record is not None}
    order = list(STAGES.values())
    return dict(
        sorted(
            records.items(),
            key=lambda one: order.index(one[1].stage) if one[1].stage in order else len(order),
        )
    )


def training_section(folder: Path) -> Section | None:
    """Every stage with its measures beside chance; None if no stage was trained here.

    Raises:
        EvidenceError: a record is broken.
    """
    records = training_records(folder)
    if not records:
        return None
    remarks = {path: learned_nothing(record.stage, record.outcome.best) for path, record in records.items()}
    newest = max(records, key=lambda path: path.stat().st_mtime)
    return Section(
        anchor="training",
        title=TITLE,
        question=QUESTION,
        answer=_answer({records[path].stage: remark for path, remark in remarks.items()}),
        origin=origin_of(newest, None, {}),
        sentences=(
            "Measured on products that no stage was trained on, stage 2 on queries held out; chance is what "
            f"the best answer reaches that looks at nothing. {_rows(records)}",
            *(remark + "." for remark in remarks.values() if remark),
        ),
        grids=(_grid(folder, records),),
        plots=(
            Plot(
                "Loss by step",
                "Loss at each evaluation, a panel for each stage: the diamond is the step whose weights were "
                "kept, the dotted line what chance gives. Losses of different stages do not compare.",
                svg_source(evidence_plots.training(_curves(records))),
            ),
        ),
    )


def _answer(remarks: Mapping[str, str | None]) -> str:
    poor = [stage for stage, remark in remarks.items() if remark]
    if not poor:
        return f"Yes: every measure of {listed(list(remarks))} is better than chance."
    return f"Not by every measure: {listed(poor)} {'have' if len(poor) > 1 else 'has'} one at chance."


def _rows(records: Mapping[Path, TrainingRecord]) -> str:
    rows = [f"{r.stage} {r.outcome.best[ROWS]:,.0f}" for r in records.values() if ROWS in r.outcome.best]
    return f"Rows measured: {', '.join(rows)}." if rows else ""


def _grid(folder: Path, records: Mapping[Path, TrainingRecord]) -> Grid:
    stages = [record.stage for record in records.values()]
    rows: list[tuple[str, ...]] = []
    bold = set()
    for path, record in records.items():
        best = record.outcome.best
        poor = no_better_than_chance(best)
        run = f" ({path.parent.relative_to(folder)})" if stages.count(record.stage) > 1 else ""
        for name in (name for name in best if f"{name}{AT_CHANCE}" in best):
            if name in poor:
                bold |= {(len(rows), 2), (len(rows), 3)}
            rows.append(
                (
                    f"{record.stage}{run}: {name.replace('_', ' ')}",
                    f"{record.outcome.best_step:,} of {record.outcome.steps:,}",
                    number(best[name], 4),
                    number(best[f"{name}{AT_CHANCE}"], 4),
                )
            )
    return Grid(
        "Of the step whose weights were kept. Losses in nats: lower is better; all else are shares: higher "
        "is. Bold: no better than chance.",
        ("Measure", "Step", "Value", "Chance"),
        tuple(rows),
        frozenset(bold),
    )


def _curves(records: Mapping[Path, TrainingRecord]) -> list[evidence_plots.TrainingCurve]:
    return [
        evidence_plots.TrainingCurve(
            stage=record.stage,
            points=[(int(entry["step"]), entry["loss"]) for entry in record.outcome.history],
            best_step=record.outcome.best_step,
            chance=_chance_of_loss(record.outcome.best),
        )
        for record in records.values()
    ]


def _chance_of_loss(best: Mapping[str, float]) -> float | None:
    """Of what decides on the weights: one of the losses by another name, or the sum of them."""
    if f"loss{AT_CHANCE}" in best:
        return best[f"loss{AT_CHANCE}"]
    parts = {name: best[name] for name in best if name.endswith("_loss") and f"{name}{AT_CHANCE}" in best}
    same = [name for name, value in parts.items() if value == best["loss"]]
    chances = [best[f"{name}{AT_CHANCE}"] for name in (same[:1] or parts)]
    return sum(chances) if chances else None
