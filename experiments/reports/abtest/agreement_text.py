"""Offline gains beside true online lifts, as Markdown."""

from collections.abc import Mapping

from experiments.abtest.metrics import METRICS
from experiments.abtest.offline.agreement import Agreement
from experiments.reports.abtest.text import percent_text
from experiments.statistics.cells import markdown_table, signed

COLUMNS = ("Ranker", "Seeds", "AUC", "AUC gain", "Log loss gain", "CTR", "Revenue a search", "Relevance")
OFFLINE_TITLES: Mapping[str, str] = {"auc": "AUC", "norm_log_loss": "normalised log loss"}
ONLINE_TITLES: Mapping[str, str] = {
    "ctr": METRICS["ctr"].title,
    "revenue": "revenue a search",
    "relevance": "relevance",
}


def agreement_rows(found: Agreement) -> list[tuple[str, ...]]:
    """A row for each variant, as `COLUMNS` names it."""
    return [
        (
            one.variant,
            str(one.seeds),
            f"{one.auc:.4f}",
            signed(one.auc_gain),
            signed(one.norm_log_loss_gain),
            percent_text(one.ctr),
            percent_text(one.revenue),
            percent_text(one.relevance),
        )
        for one in found.variants
    ]


def agreement_sentences(found: Agreement) -> list[str]:
    """Rank correlations, in words."""
    return [
        f"Ordered by {OFFLINE_TITLES[one.offline]} and by the true {ONLINE_TITLES[one.online]}: Spearman "
        f"{one.spearman_variants:+.2f} and Kendall {one.kendall_variants:+.2f} over {len(found.variants)} "
        f"rankers, Spearman {one.spearman_runs:+.2f} over {len(found.runs)} runs."
        for one in found.correlations
    ]


def agreement_markdown(found: Agreement) -> str:
    """`agreement.md`."""
    table = markdown_table(COLUMNS, [list(row) for row in agreement_rows(found)], text_columns=1)
    baseline = found.variants[0].variant
    made = found.environment
    return "\n".join(
        [
            "# Offline gains and true online lifts",
            "",
            f"**Simulated data.** Each ranker served {found.settings.days} days of "
            f"{found.searches_per_day:,} searches alone. Gains and lifts are over {baseline}; a lift is of "
            "what was to be expected, without noise. AUC and log loss are of the test days of the world's "
            "log.",
            "",
            *table,
            "",
            *(f"- {sentence}" for sentence in agreement_sentences(found)),
            "",
            f"Made by `{found.command}` at commit {made['commit']}, {made['created']}.",
            "",
        ]
    )
