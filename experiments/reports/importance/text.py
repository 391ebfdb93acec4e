"""An importance report in words (what leads, what cannot be told apart, for whom), and for the terminal."""

import re
from collections.abc import Sequence
from typing import Literal

from rich.table import Table

from experiments.importance.result import (
    ALL,
    METHOD_TITLES,
    METHODS,
    RANKED_BY,
    FeatureImportance,
    ImportanceReport,
    Method,
    MethodAgreement,
)
from experiments.reports.page import listed
from experiments.statistics import paper
from experiments.statistics.cells import limits, with_sd
from experiments.statistics.intervals import excludes_zero, surely_negative, surely_positive

#: Slices that are each other's opposite, with words for a sentence.
_OPPOSITES = (
    ("has purchases", "no purchases", "users with purchases", "users without"),
    ("head query", "tail query", "head queries", "tail queries"),
    ("product seen in training", "new product", "products seen in training", "new products"),
)
_COUNTER = re.compile(r"(?P<key>\w+)_(?P<kind>impressions|clicks|ctr)_(?P<days>\d+)d")
_NAMED_AT_MOST = 8
_LEADERS_AT_MOST = 6
#: Rows of a table for the terminal.
_SHOWN = 15
#: With fewer models a Student-t interval is mostly the width of its own uncertainty.
_ENOUGH_RUNS = 5


def feature_title(name: str) -> str:
    """A readable title: `query_product_ctr_7d` is "query × product CTR, 7 d", `user_id` is "user id"."""
    counter = _COUNTER.fullmatch(name)
    if counter is None:
        return name.replace("_", " ")
    kind = {"ctr": "CTR"}.get(counter["kind"], counter["kind"])
    return f"{counter['key'].replace('_', ' × ')} {kind}, {counter['days']} d"


def overlap(a: FeatureImportance, b: FeatureImportance) -> bool:
    """Whether the intervals of two entries share a point; entries without one are never told apart."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high


def tiers(ranked: Sequence[FeatureImportance]) -> list[list[FeatureImportance]]:
    """A sorted list cut where an interval no longer overlaps that of the first entry of its tier."""
    found: list[list[FeatureImportance]] = []
    for entry in ranked:
        if found and overlap(found[-1][0], entry):
            found[-1].append(entry)
        else:
            found.append([entry])
    return found


def leading_sentences(report: ImportanceReport) -> list[str]:
    """What leads by permutation, tier by tier, and what cannot be told from no effect."""
    ranked = report.ranked()
    if not ranked:
        return ["Permutation was not asked for; the tables and bars show what was measured."]
    useful = [entry for entry in ranked if surely_positive(entry)]
    largest_sure = useful[0].mean if useful else 0.0
    wide = [entry for entry in ranked if entry.mean > largest_sure and not surely_positive(entry)]
    sentences = [_wide_sentence(report, wide)] if wide and useful else []
    named = 0
    for place, tier in enumerate(tiers(useful)):
        if named and named + len(tier) > _LEADERS_AT_MOST:
            break
        named += len(tier)
        sentences.append(_tier_sentence(report, tier, place=place, after_wide=bool(wide)))
    return [*sentences, *_rest(report, ranked, named, wide if useful else [])]


def paper_sentence(report: ImportanceReport) -> str | None:
    """Where the paper's three leaders stand here; None if the model reads none of them."""
    places = {entry.name: place for place, entry in enumerate(report.ranked(), start=1)}
    found = [name for name in paper.LEADERS if name in places]
    if not found:
        return None
    first, *others = [f"{name} is number {places[name]}" for name in found]
    stands = listed([first, *(other.replace("is number", "number") for other in others)])
    lead = sum(places[name] <= len(paper.LEADERS) for name in found)
    verdict = "so they do here" if lead == len(paper.LEADERS) else f"{lead} of the three do here"
    return (
        f"In the paper query embedding, product embedding and purchase history take the first three places; "
        f"{verdict}: of {len(places)} features {stands}."
    )


def with_titles(report: ImportanceReport, sentence: str) -> str:
    """A sentence with the titles of features for their names."""
    names = sorted({entry.name for entry in report.features if "_" in entry.name}, key=len, reverse=True)
    if not names:
        return sentence
    pattern = rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)"
    return re.sub(pattern, lambda match: feature_title(match[0]), sentence)


def group_sentences(report: ImportanceReport) -> list[str]:
    """The groups that cost most as a whole, and the group whose features most stand in for each other."""
    ranked = report.ranked(kind="group")
    if not ranked:
        return []
    first = listed([f"{entry.name} {entry.mean:.4f}" for entry in ranked[:3]])
    sentences = [f"Shuffled as one, these groups cost most AUC: {first}."]
    single = {entry.name: entry.mean for entry in report.ranked()}
    hidden = [
        (entry.mean - sum(single[name] for name in entry.members), entry)
        for entry in ranked
        if surely_positive(entry) and all(name in single for name in entry.members)
    ]
    by_share = sorted(hidden, key=lambda pair: -pair[0] / pair[1].mean)
    for excess, entry in by_share[:1]:
        if excess > 0.2 * entry.mean:
            sentences.append(
                f"The {len(entry.members)} features of {entry.name} stand in for each other: shuffled one by "
                f"one they cost {entry.mean - excess:.4f} in sum, all together {entry.mean:.4f}. Judge them "
                "together."
            )
    return sentences


def slice_sentences(report: ImportanceReport, *, at_most: int = 5) -> list[str]:
    """Features that matter for some impressions and less for their opposite, the largest contrast first.

    Only features that help over all rows are asked: among many that do not, some would differ by chance.
    """
    helpful = {entry.name for entry in report.ranked() if surely_positive(entry)}
    by_slice = {
        slice: {entry.name: entry for entry in report.ranked(slice=slice) if entry.name in helpful}
        for slice in slices_of(report)
    }
    contrasts = []
    for one, other, one_words, other_words in _OPPOSITES:
        for name in by_slice.get(one, {}).keys() & by_slice.get(other, {}).keys():
            sides = [(by_slice[one][name], one_words), (by_slice[other][name], other_words)]
            (low, low_words), (high, high_words) = sorted(sides, key=lambda side: side[0].mean)
            if overlap(low, high):
                continue
            there = f"than for {low_words} ({low.mean:.4f})"
            if not surely_positive(low):
                there = f"than for {low_words}, where nothing shows that it helps"
            here = f"matters more for {high_words} ({high.mean:.4f} AUC)"
            sentence = f"{capital(feature_title(name))} {here} {there}."
            contrasts.append((high.mean - low.mean, sentence))
    return [sentence for _, sentence in sorted(contrasts, reverse=True)[:at_most]]


def slices_of(report: ImportanceReport, *, aisles: bool = False) -> list[str]:
    """Slices with permutation importance, in the order of the file; the whole is not one of them."""
    found = dict.fromkeys(
        entry.slice for entry in report.features if entry.method == "permutation" and entry.slice != ALL
    )
    return [slice for slice in found if slice.startswith("aisle: ") == aisles]


def methods_of(report: ImportanceReport) -> list[Method]:
    """The methods that ranked the features."""
    return [method for method in METHODS if report.ranked(method=method)]


def agreement_title(found: MethodAgreement) -> str:
    """As "Permutation and ablation"."""
    return f"{METHOD_TITLES[found.a]} and {METHOD_TITLES[found.b].lower()}"


def _wide_sentence(report: ImportanceReport, wide: Sequence[FeatureImportance]) -> str:
    """On features whose mean tops every sure one, but whose interval reaches zero."""
    each = listed([f"{feature_title(entry.name)} ({entry.mean:.4f}{_limits(entry)})" for entry in wide[:3]])
    noise = f"the {len(report.runs)} models differ" if len(report.runs) > 1 else "the shuffles differ"
    return f"On average {each} cost{'s' if len(wide) == 1 else ''} most AUC, but {noise} too much to be sure."


def _limits(entry: FeatureImportance) -> str:
    return "" if entry.low is None else f", 95 % interval {limits(entry)}"


def _tier_sentence(
    report: ImportanceReport, tier: Sequence[FeatureImportance], *, place: int, after_wide: bool
) -> str:
    names = [feature_title(entry.name) for entry in tier]
    if len(tier) == 1:
        (entry,) = tier
        cost = f"{entry.mean:.4f} AUC ({_limits(entry).removeprefix(', ')})"
        if place:
            return f"{'Next comes' if place == 1 else 'Then'} {names[0]} with {cost}."
        if after_wide:
            return f"The largest loss that is sure is that of {names[0]} with {cost}."
        base = report.base["auc"].mean
        return (
            f"{capital(names[0])} matters most: with its values shuffled among impressions the model "
            f"loses {cost}, from {base:.4f} to {base - entry.mean:.4f}."
        )
    each = [f"{name} ({entry.mean:.4f})" for name, entry in zip(names, tier, strict=True)]
    first = "The largest losses that are sure are those of" if after_wide else "The lead is shared by"
    start = (first, "Next come", "Then")[min(place, 2)]
    return f"{start} {_some(each)}: their intervals overlap, so the order among them is not certain."


def _rest(
    report: ImportanceReport,
    ranked: Sequence[FeatureImportance],
    named: int,
    wide: Sequence[FeatureImportance],
) -> list[str]:
    useful = sum(surely_positive(entry) for entry in ranked)
    sentences = []
    if useful > named:
        words = "more feature has an interval" if useful == named + 1 else "more features have intervals"
        sentences.append(f"{useful - named} {words} above zero, each smaller than these.")
    unclear = [entry for entry in ranked if not excludes_zero(entry) and entry not in wide]
    if unclear:
        names = [feature_title(entry.name) for entry in unclear]
        which = f" ({_some(names)})" if len(names) <= _NAMED_AT_MOST else ""
        sentences.append(
            f"For {len(unclear)} of {len(ranked)} features nothing shows that the model gains from them: "
            f"their intervals reach zero{which}."
        )
    harmful = [entry for entry in ranked if surely_negative(entry)]
    if harmful:
        sentences.append(
            "On these rows the model would rank better without what it reads in "
            f"{_some([feature_title(entry.name) for entry in harmful])}: shuffling the values raises AUC."
        )
    if 1 < len(report.runs) < _ENOUGH_RUNS:
        sentences.append(
            f"Intervals rest on {len(report.runs)} models only and are wide; {_ENOUGH_RUNS} seeds tell more."
        )
    return sentences


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED_AT_MOST
    return listed([*texts[:_NAMED_AT_MOST], f"{more} more"] if more > 0 else texts)


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def feature_table(report: ImportanceReport) -> Table:
    """The leading features by the first method that was measured, beside the other methods."""
    return _table(
        report, "feature", f"What AUC loses without a feature ({report.variant}, {report.split} rows)"
    )


def group_table(report: ImportanceReport) -> Table:
    """Groups, each moved as one."""
    return _table(report, "group", "Groups of features")


def _table(report: ImportanceReport, kind: Literal["feature", "group"], title: str) -> Table:
    ranked = {
        method: {entry.name: entry for entry in report.ranked(method=method, kind=kind)} for method in METHODS
    }
    measured = [method for method, entries in ranked.items() if entries]
    table = Table(title=title)
    table.add_column("")
    table.add_column(kind)
    for method in measured:
        metric = RANKED_BY[method].replace("auc", "AUC")
        table.add_column(f"{METHOD_TITLES[method].lower()}, {metric}", justify="right")
    for place, name in enumerate(list(ranked[measured[0]])[:_SHOWN] if measured else [], start=1):
        entries = [ranked[method].get(name) for method in measured]
        table.add_row(
            str(place), name, *(with_sd(entry.mean, entry.sd) if entry else "" for entry in entries)
        )
    return table


def sentences(report: ImportanceReport) -> list[str]:
    """What the tables do not say."""
    runs = len(report.runs)
    spread = f"over {runs} runs" if runs > 1 else f"over {report.repeats} permutations of one run"
    found = [f"± is the standard deviation {spread}; {report.rows:,} rows, {report.clicks:,} clicks."]
    if report.agreement.sentence:
        found.append(report.agreement.sentence)
    if report.convergence_delta:
        delta = report.convergence_delta
        found.append(
            f"Integrated gradients add up to the logit's difference from the baseline within "
            f"{delta.mean:.4f} logits on average ({delta.steps} steps)."
        )
    found += [pair.sentence for pair in report.correlated_pairs[:3]]
    if report.speedup_to_naive is not None:
        found.append(
            f"{report.speedup_to_naive:.1f} times as fast as Captum's FeaturePermutation on the same rows."
        )
    if report.selection:
        found.append(report.selection.sentence)
    return [*found, *report.notes]
