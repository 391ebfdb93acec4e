"""A sweep's result as text: rows of cells shared by the page and the Markdown, and the console table.

A gain or a loss is what both intervals of a difference agree on, that over seeds and that over users.
"""

from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.statistics import paper
from experiments.statistics.cells import NONE, limits, markdown_table, number, signed, with_sd
from experiments.statistics.intervals import Interval, Verdict
from experiments.sweeps.comparison import Difference
from experiments.sweeps.table2 import FEW_ROWS, SliceFacts, Table2, VariantResult

#: How a sure gain and a sure loss look on a terminal.
_STYLES: dict[Verdict, str] = {"above": "bold green", "below": "bold red"}


@dataclass(frozen=True)
class Row:
    """One variant on one slice, ready to print; `verdict` is that of its difference to the baseline.

    `over_second` is the difference to the second baseline with its interval over seeds.
    """

    title: str
    seeds: str
    auc: str
    difference: str
    seeds_interval: str
    users_interval: str
    verdict: Verdict
    gain_share: str
    norm_logloss: str
    norm_logloss_difference: str
    calibration: str
    expected_auc: str
    logloss: str
    gauc_query: str
    gauc_user: str
    paper: str
    over_second: str


def rows_of_slice(table: Table2, key: str) -> list[Row]:
    """The variants in the sweep's order, measured on one slice."""
    return [_row(table, variant, key) for variant in table.variants.values()]


def compares_with_paper(table: Table2) -> bool:
    """Whether the sweep has one of the paper's variants besides the baseline."""
    return any(name in paper.TABLE2["all"] for name in table.variants if name != table.baseline)


def findings(table: Table2) -> list[str]:
    """One sentence for each variant: what it does to the AUC, and how sure that is.

    Then, where the sweep has them: the best variant beside the second baseline, and beside the ceiling.
    """
    base = table.variants.get(table.baseline)
    if base is None:
        return []
    sentences = []
    for variant in table.variants.values():
        found = variant.slices["all"].difference
        if found is None:
            continue
        if found.auc.low is None:
            said = f"differs by {signed(found.auc.mean)} AUC from {base.title}; one seed gives no interval"
        elif found.verdict == "not told apart":
            said = f"is not told apart from {base.title}: {signed(found.auc.mean)} AUC ({intervals(found)})"
        else:
            verb = "gains" if found.verdict == "above" else "loses"
            said = f"{verb} {abs(found.auc.mean):.4f} AUC against {base.title} ({intervals(found)})"
        if found.gain_share is not None and found.verdict == "above":
            said += f", {100 * found.gain_share:.0f} % of the reachable gain"
        sentences.append(f"{variant.title} {said}.")
    return [*sentences, *yardstick_sentences(table)]


def power_sentences(table: Table2) -> list[str]:
    """How many clicks the test has, and which differences to the baseline it could show at all.

    Empty where nothing is compared with an interval.
    """
    found = [one.detectable for _, one in table.compared if one.detectable is not None]
    if not found:
        return []
    everything = table.slices["all"]
    sizes = f"{min(found):.4f}" if len(found) == 1 else f"{min(found):.4f} to {max(found):.4f}, by variant,"
    return [
        f"{everything.clicks:,} of the {everything.rows:,} test impressions were clicked. A difference in "
        f"AUC of {sizes} or more is told from none in four of five such tests (80 % power, from the "
        "intervals over users); smaller ones are mostly missed."
    ]


def yardstick_sentences(table: Table2) -> list[str]:
    """The best variant beside the second baseline and beside the ceiling, where the sweep has them."""
    return [said for said in (_over_second_sentence(table), _share_sentence(table)) if said]


def _over_second_sentence(table: Table2) -> str | None:
    """What the best variant gains over the second baseline, and how many surely gain over it."""
    second = table.second_baseline
    if second is None or table.best is None:
        return None
    best, _ = table.best
    found = best.slices["all"].over_second
    if found is None:
        return None
    others = [variant.slices["all"].over_second for variant, _ in table.compared]
    sure = sum(other is not None and other.verdict == "above" for other in others)
    verb = "gains" if sure == 1 else "gain"
    return (
        f"Over the second baseline, {second.title}: {signed(found.auc.mean)} AUC of {best.title} "
        f"({intervals(found)}); {sure} of {len(others)} variants surely {verb} over it."
    )


def _share_sentence(table: Table2) -> str | None:
    """Which share of the highest ceiling's gain the best variant reaches."""
    if table.best_share is None:
        return None
    best, ceiling, share = table.best_share
    sizes = [
        f"{100 * one.low:.0f} … {100 * one.high:.0f} % over {name}"
        for name, one in (("seeds", share.seeds), ("users", share.users))
        if one.low is not None and one.high is not None
    ]
    sure = f" (95 % interval {', '.join(sizes)})" if sizes else " (no interval)"
    return (
        f"{best.title} reaches {100 * share.seeds.mean:.0f} % of what {ceiling.title} gains over "
        f"{table.variants[table.baseline].title}{sure}."
    )


def intervals(difference: Difference) -> str:
    """As "95 % interval over seeds 0.0012 … 0.0034, over users -0.0005 … 0.0051"."""
    return f"95 % interval over seeds {limits(difference.auc)}, over users {limits(difference.auc_users)}"


def gap_sentences(table: Table2) -> list[str]:
    """For each variant, whether it does more for users with purchases than for those without."""
    return [
        _gap_sentence(variant, gap)
        for variant in table.variants.values()
        if (gap := variant.purchases_gap) is not None
    ]


def _gap_sentence(variant: VariantResult, gap: Difference) -> str:
    if gap.auc.low is None:
        said = f"differ by {signed(gap.auc.mean)} AUC in what it does; one seed gives no interval"
        return f"{variant.title}: users with and without purchases {said}."
    if gap.verdict == "not told apart":
        said = f"are not told apart ({signed(gap.auc.mean)} AUC, {intervals(gap)})"
        return f"{variant.title}: users with and without purchases {said}."
    of_buyers = variant.slices["has_purchases"].difference
    gains = gap.verdict == "above" and of_buyers is not None and of_buyers.verdict == "above"
    verb = "gain" if gains else "are better off by" if gap.verdict == "above" else "are worse off by"
    more = " more" if gains else ""
    return (
        f"{variant.title}: users with purchases {verb} {abs(gap.auc.mean):.4f} AUC{more} than users without "
        f"({intervals(gap)})."
    )


def to_markdown(table: Table2) -> str:
    """The report as Markdown: the main table, the slices, the pairs, and what is missing."""
    record = table.results.record
    everything = table.slices["all"]
    kind = "Real data"
    if record.simulated:
        kind = "SIMULATED data (generated, not real users)"
    elif record.constructed:
        kind = "CONSTRUCTED impressions (nobody saw them; real purchases count as clicks)"
    lines = [
        f"# {record.name}: variants compared",
        "",
        f"**{kind}.** {everything.rows:,} test impressions {_of_users(everything)}, CTR "
        f"{100 * everything.clicks / everything.rows:.1f} % ({everything.clicks:,} clicks); {table.seeds} "
        "seeds.",
        "",
    ]
    if everything.best_auc is not None:
        lines += [f"Best reachable AUC (true click probabilities as scores): {everything.best_auc:.4f}.", ""]
    lines += [f"- {sentence}" for sentence in findings(table) + power_sentences(table) + gap_sentences(table)]
    for key, facts in table.slices.items():
        few = ", which are few" if facts.rows < FEW_ROWS else ""
        lines += ["", f"## {facts.title} ({facts.rows:,} impressions{few})", ""]
        lines += _markdown_table(table, key)
    expected = everything.best_auc_expected is not None
    if table.pairs:
        lines += ["", "## Every pair of variants, all impressions", ""]
        heading = ["Variant", "against", "AUC difference", "95 % over seeds", "95 % over users"]
        heading += ["Expected AUC difference (95 % over seeds)"] * expected
        lines += markdown_table(heading, pair_rows(table), text_columns=2)
    lines += ["", "## Missing", ""] if table.notes or table.missing else []
    lines += [f"- {note}" for note in table.notes]
    lines += [f"- {run.variant}, seed {run.seed}: {run.reason}" for run in table.missing]
    lines += [
        "",
        "Mean ± sample standard deviation over seeds; differences are paired by seed with Student-t "
        f"intervals; intervals over users from {table.bootstrap_resamples} bootstrap resamples of whole "
        "users. Log loss is normalised by the entropy of the CTR of the rows evaluated.",
    ]
    if expected:
        lines[-1] += " Expected AUC: clicks drawn anew from the true probabilities, on average."
    return "\n".join(lines) + "\n"


def _of_users(facts: SliceFacts) -> str:
    return f"of {facts.users:,} users" if facts.users else "without users"


def console_table(table: Table2) -> Table:
    """The main table for a terminal."""
    record = table.results.record
    label = "real data"
    if record.simulated or record.constructed:
        label = f"[bold]{'SIMULATED data' if record.simulated else 'CONSTRUCTED impressions'}[/bold]"
    title = f"{escape(record.name)}: {label}, {table.seeds} seeds"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("Variant", min_width=15)
    headings = ("AUC", "AUC\ndiff", "95 %\nseeds", "95 %\nusers", "Gain\nshare", "Norm.\nlog loss", "Calib.")
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows_of_slice(table, "all"):
        style = _STYLES.get(row.verdict)
        difference = f"[{style}]{row.difference}[/{style}]" if style else row.difference
        cells = [row.auc, difference, row.seeds_interval, row.users_interval]
        cells += [row.gain_share, row.norm_logloss, row.calibration]
        # Two lines a cell, so that all columns fit a terminal of 80.
        stacked = [cell.replace(" ± ", "\n±").replace(" … ", "\n…") for cell in cells]
        shown.add_row(escape(row.title), *stacked)
    if record.floor:
        logloss = number(record.floor.norm_logloss)
        shown.add_row(escape(record.floor.name), number(record.floor.auc), "", "", "", "", logloss, "")
    best = table.slices["all"].best_auc
    if best is not None:
        shown.add_row("Best reachable", number(best), "", "", "", "100 %", "", "", style="dim")
    return shown


def pair_rows(table: Table2) -> list[tuple[str, ...]]:
    """Cells of the table of pairs: variant, against, difference, seed interval, user interval.

    Where click probabilities are known, one more: the difference in expected AUC with its seed interval.
    """
    titles = {name: variant.title for name, variant in table.variants.items()}
    rows = []
    for (one, other), pair in table.pairs.items():
        cells = [titles[one], titles[other], signed(pair.auc.mean), limits(pair.auc), limits(pair.auc_users)]
        if table.slices["all"].best_auc_expected is not None:
            cells.append(_change(pair.expected_auc))
        rows.append(tuple(cells))
    return rows


def _row(table: Table2, variant: VariantResult, key: str) -> Row:
    found = variant.slices[key]
    difference = found.difference
    gain = difference.gain_share if difference is not None and difference.verdict == "above" else None
    logloss = None if difference is None else difference.norm_logloss
    in_paper = paper.TABLE2.get(key, {}).get(variant.name)
    return Row(
        title=variant.title,
        seeds=str(len(variant.seeds)),
        auc=with_sd(found.auc_mean, found.auc_sd),
        difference=""
        if variant.name == table.baseline
        else signed(difference.auc.mean if difference else None),
        seeds_interval="" if difference is None else limits(difference.auc),
        users_interval="" if difference is None else limits(difference.auc_users),
        verdict="not told apart" if difference is None else difference.verdict,
        gain_share=("" if variant.name == table.baseline else NONE)
        if gain is None
        else f"{100 * gain:.0f} %",
        norm_logloss=with_sd(found.norm_logloss_mean, found.norm_logloss_sd),
        norm_logloss_difference="" if logloss is None else _change(logloss),
        calibration=number(found.calibration_mean, 3),
        expected_auc=number(found.expected_auc_mean),
        logloss=number(found.logloss_mean),
        gauc_query=number(found.gauc_query_mean),
        gauc_user=number(found.gauc_user_mean),
        over_second="" if found.over_second is None else _change(found.over_second.auc),
        paper=f"{in_paper[0]:.4f} / {in_paper[1]:.4f}" if in_paper else "",
    )


def _change(interval: Interval | None) -> str:
    """As "+0.0010 (-0.0002 … 0.0022)"."""
    return NONE if interval is None else f"{signed(interval.mean)} ({limits(interval)})"


def _markdown_table(table: Table2, key: str) -> list[str]:
    beside_paper = compares_with_paper(table) and key in paper.TABLE2
    heading = ["Variant", "AUC", "AUC difference", "95 % over seeds", "95 % over users", "Share of gain"]
    second = table.second_baseline
    heading += ["Normalised log loss", "Calibration"]
    heading += [f"Over {second.title} (95 % over seeds)"] if second else []
    heading += ["Paper: AUC / log loss"] * beside_paper
    rows = []
    for row in rows_of_slice(table, key):
        cells = [row.title, row.auc, row.difference, row.seeds_interval, row.users_interval]
        cells += [row.gain_share, row.norm_logloss, row.calibration]
        rows.append(cells + [row.over_second] * bool(second) + [row.paper] * beside_paper)
    floor = table.results.record.floor
    if floor and key == "all":
        cells = [floor.name, number(floor.auc), "", "", "", "", number(floor.norm_logloss), ""]
        rows.append(cells + [""] * (beside_paper + bool(second)))
    return markdown_table(heading, rows)
