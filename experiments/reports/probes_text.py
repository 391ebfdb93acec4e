"""The probes of paper section 5 as Markdown."""

from embeddings.evaluation.probe_report import ProbeReport
from experiments.statistics import paper
from experiments.statistics.cells import NONE, markdown_table, number, with_limits, with_sd

_TITLES = {
    "aisle": "Aisle of a product",
    "relevance": "Relevance, split over pairs (as the paper)",
    "relevance_interactions": "Relevance with |p − q| and p · q, over pairs",
    "relevance_unseen_queries": "Relevance, unseen queries",
    "relevance_interactions_unseen_queries": "Relevance with |p − q| and p · q, unseen queries",
}


def probe_title(name: str) -> str:
    """What a probe asks: `aisle` is "Aisle of a product"."""
    return _TITLES.get(name, name)


def paper_cell(name: str) -> str:
    """Macro F1 of the paper before and after, as "0.707 → 0.750"; a dash for a probe that it has not."""
    return " → ".join(f"{value:.3f}" for value in paper.PROBES[name]) if name in paper.PROBES else NONE


def to_markdown(report: ProbeReport) -> str:
    """Macro F1 of every probe, then recall of each grade, then cosines by grade."""
    sides = (report.before.name, report.after.name)
    rows = [
        (
            _cell_title(name),
            f"{found.majority_macro_f1:.3f}",
            *(with_sd(side.macro_f1, side.macro_f1_sd, 3) for side in (found.before, found.after)),
            with_limits(found.difference, 3, sign=True, square=True),
            paper_cell(name),
        )
        for name, found in report.probes.items()
    ]
    lines = markdown_table(("Macro F1", "majority", *sides, "difference", "paper"), rows, compact=True)
    for name, found in report.probes.items():
        if name == "aisle":
            continue
        rows_C = found.after.confusion_CC.sum(axis=1)
        recalls = [
            (
                grade,
                f"{share:.3f}",
                *(number(side.recall[grade], 3) for side in (found.before, found.after)),
            )
            for grade, share in zip(found.classes, rows_C / rows_C.sum(), strict=True)
        ]
        heading = (f"Recall: {_cell_title(name)}", "share of test", *sides)
        lines += ["", *markdown_table(heading, recalls, compact=True)]
    encoders = (report.before, report.after)
    if all(mean is None for encoder in encoders for mean in encoder.mean_cosine.values()):
        return "\n".join([*lines, *_left_out(report)]) + "\n"
    cosines = [
        (f"mean, {grade}", *(number(encoder.mean_cosine[grade], 3) for encoder in encoders))
        for grade in report.before.mean_cosine
    ]
    for name in ("auc_high_vs_irrelevant", "auc_high_vs_moderate", "auc_moderate_vs_irrelevant"):
        title = name.removeprefix("auc_").replace("_vs_", " above ")
        aucs = (number(getattr(encoder, name), 3) for encoder in encoders)
        cosines.append((f"AUC, {title}", *aucs))
    lines += ["", *markdown_table(("Cosine of product and query", *sides), cosines, compact=True)]
    return "\n".join([*lines, *_left_out(report)]) + "\n"


def left_out_sentences(report: ProbeReport) -> list[str]:
    """Why probes were left out, each reason once with the probes that it kept out."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.left_out.items():
        # A reason begins with the name of the probe, which differs where nothing else does.
        by_reason.setdefault(reason.replace(f"the {name} probe", "it"), []).append(probe_title(name))
    return [f"Not measured: {'; '.join(titles)}: {reason}." for reason, titles in by_reason.items()]


def _left_out(report: ProbeReport) -> list[str]:
    return [line for sentence in left_out_sentences(report) for line in ("", sentence)]


def _cell_title(name: str) -> str:
    return probe_title(name).replace("|", "\\|")
