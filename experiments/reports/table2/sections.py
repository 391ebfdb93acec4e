"""What table 2 answers on the evidence page: the gain, for whom, calibration, learning curves."""

from datetime import datetime

import numpy as np

from experiments.reports.page import Origin, Plot, Section, listed, svg_source
from experiments.reports.table2 import plots
from experiments.reports.table2.text import intervals, yardstick_sentences
from experiments.statistics.cells import limits, signed
from experiments.statistics.intervals import Verdict
from experiments.sweeps.table2 import SliceFacts, Table2, VariantResult

#: More slices with a gain than this are not all named.
_SLICES_NAMED = 3
_NO_COMPARISON = "There is no baseline with another variant beside it to compare."


def table2_sections(table: Table2) -> list[Section]:
    """The gain, the slices, calibration, and learning curves where runs recorded any."""
    origin = _origin(table)
    sections = [_lift(table, origin), _slices(table, origin), _calibration(table, origin)]
    learning = _learning(table, origin)
    return [*sections, learning] if learning else sections


def _lift(table: Table2, origin: Origin) -> Section:
    return Section(
        anchor="table2",
        title="Table 2: what each variant gains",
        question="Do semantic embeddings make the CTR model better, and by how much?",
        answer=_lift_answer(table),
        origin=origin,
    )


def _lift_answer(table: Table2) -> str:
    compared = table.compared
    if table.best is None:
        return _NO_COMPARISON
    title = table.variants[table.baseline].title
    best, found = table.best
    if found.auc.low is None:
        return f"{best.title}: {signed(found.auc.mean)} AUC against {title}; one seed gives no interval."
    sure = [variant for variant, difference in compared if difference.verdict == "above"]
    if not sure:
        lost = [variant.title for variant, difference in compared if difference.verdict == "below"]
        losing = f" {listed(lost)} {'lose' if len(lost) > 1 else 'loses'} some." if lost else ""
        return f"No: none of {len(compared)} variants surely gains AUC against {title}.{losing}"
    interval = f"95 % over seeds {limits(found.auc)}, over users {limits(found.auc_users)}"
    rivals = [variant.title for variant, _ in compared if _cannot_be_told_apart(table, variant, best)]
    apart = f" It is not told apart from {listed(rivals)}." if rivals else ""
    share = "" if found.gain_share is None else f", {100 * found.gain_share:.0f} % of what can be gained"
    return (
        f"Yes: {len(sure)} of {len(compared)} variants {'gains' if len(sure) == 1 else 'gain'} AUC against "
        f"{title}. The most gains "
        f"{best.title}: {signed(found.auc.mean)} ({interval}){share}.{apart}"
        + "".join(f" {sentence}" for sentence in yardstick_sentences(table))
    )


def _slices(table: Table2, origin: Origin) -> Section:
    drawn = []
    if any(variant.slices["all"].difference for variant in table.variants.values()):
        drawn.append(
            Plot(
                "How much each variant gains, and for whom",
                "AUC difference to the baseline in each slice. Thick line: 95 % interval over seeds "
                "(training noise). Thin line: 95 % interval over users (test-sample noise). Right of the "
                "vertical line is better than the baseline.",
                svg_source(plots.forest(table)),
            )
        )
    drawn.append(
        Plot(
            "AUC by slice",
            "Mean over seeds, bars start at chance (0.5), whiskers are one standard deviation over seeds. A "
            "black line marks the best reachable AUC where it is known. Slices differ in difficulty: compare "
            "bars within a slice.",
            svg_source(plots.slice_bars(table)),
        )
    )
    return Section(
        anchor="slices",
        title="By slice",
        question="For whom do they make it better?",
        answer=_slices_answer(table),
        origin=origin,
        plots=tuple(drawn),
    )


def _slices_answer(table: Table2) -> str:
    if table.best is None:
        return _NO_COMPARISON
    best, overall = table.best
    found = {
        key: difference
        for key, measured in best.slices.items()
        if key != "all" and (difference := measured.difference) is not None
    }
    if not found:
        return "No slice has enough clicks to compare."
    if overall.auc.low is None:
        return f"{best.title}: one seed gives no interval, so no slice is told apart."

    def named(verdict: Verdict) -> list[str]:
        """Slices, the largest difference first; one that is told apart with it and its intervals."""
        of_verdict = [key for key in found if found[key].verdict == verdict]
        sizes = {key: f" {signed(found[key].auc.mean)} ({intervals(found[key])})" for key in of_verdict}
        return [
            _in_sentence(table.slices[key]) + ("" if verdict == "not told apart" else sizes[key])
            for key in sorted(of_verdict, key=lambda key: -abs(found[key].auc.mean))
        ]

    gains, losses, others = named("above"), named("below"), named("not told apart")
    parts = []
    if len(gains) > _SLICES_NAMED:
        parts.append(f"gains most for {listed(gains[:2])}, and least, but surely, for {gains[-1]}")
    elif gains:
        parts.append(f"gains for {listed(gains)}")
    parts += [f"loses for {listed(losses)}"] if losses else []
    parts += [f"is not told apart from the baseline for {listed(others)}"] if others else []
    return f"{best.title} {'; it '.join(parts)}."


def _calibration(table: Table2, origin: Origin) -> Section:
    ratios = [
        found
        for variant in table.variants.values()
        if (found := variant.slices["all"].calibration_mean) is not None
    ]
    answer = "Calibration is undefined without clicks."
    if ratios:
        span = (
            f"{min(ratios):.3f} to {max(ratios):.3f} times" if len(ratios) > 1 else f"{ratios[0]:.3f} times"
        )
        near = all(0.95 < ratio < 1.05 for ratio in ratios)
        answer = (
            f"{'Yes' if near else 'Not everywhere'}: on average the variants predict {span} the observed CTR."
        )
    return Section(
        anchor="calibration",
        title="Calibration",
        question="Is a predicted click probability what it says?",
        answer=answer,
        origin=origin,
        plots=(
            Plot(
                "Observed against predicted CTR",
                "Ten bins of equal row count, all seeds pooled. On the dashed line a prediction of 10 % is "
                "clicked one time in ten; below it the model promises too much.",
                svg_source(plots.calibration(table)),
            ),
        ),
    )


def _learning(table: Table2, origin: Origin) -> Section | None:
    svg = plots.learning_curves(table)
    if svg is None:
        return None
    last_steps = [
        aucs[-1] - aucs[-2]
        for variant in table.variants.values()
        for _, aucs in variant.learning_curves.values()
        if len(aucs) > 1
    ]
    answer = "Validation AUC was measured once a run."
    if last_steps:
        change = float(np.mean(last_steps))
        verb = "still rose" if change > 0 else "fell"
        answer = (
            f"Between the last two evaluations validation AUC {verb} by {abs(change):.4f} on average over "
            f"{len(last_steps)} runs."
        )
    return Section(
        anchor="learning",
        title="Learning curves",
        question="Was training long enough?",
        answer=answer,
        origin=origin,
        plots=(
            Plot(
                "Validation AUC while training",
                "Each seed thin, the mean of all seeds thick (only where every seed was evaluated). The test "
                "days are never looked at while training.",
                svg_source(svg),
            ),
        ),
    )


def _in_sentence(facts: SliceFacts) -> str:
    return facts.name[:1].lower() + facts.name[1:]


def _cannot_be_told_apart(table: Table2, one: VariantResult, other: VariantResult) -> bool:
    """Two variants whose AUC difference has an interval, over seeds or over users, that reaches zero."""
    pair = table.pairs.get((one.name, other.name)) or table.pairs.get((other.name, one.name))
    return pair is not None and pair.auc.low is not None and pair.verdict == "not told apart"


def _origin(table: Table2) -> Origin:
    """The sweep's command, the commits of its runs, and when the last of them ended."""
    runs = [run for by_seed in table.results.runs.values() for run in by_seed.values()]
    commits = sorted({str(found) for run in runs if (found := run.environment.get("commit"))})
    ended = sorted(str(found) for run in runs if (found := run.record.get("created")))
    return Origin(
        command=table.results.record.command,
        commits=tuple(commits),
        created=datetime.fromisoformat(ended[-1]) if ended else None,
    )
