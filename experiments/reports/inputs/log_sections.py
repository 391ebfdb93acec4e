"""The sections on the log of the page of a data folder: clicks over time, what is frequent, purchases."""

from experiments.projects.configs import draft_features
from experiments.projects.survey import Survey
from experiments.reports.inputs import plots
from experiments.reports.inputs.facts import Facts, Frequency
from experiments.reports.page import Absent, Grid, Plot, Section, svg_source
from experiments.statistics.cells import share
from experiments.statistics.power import expected_sentence


def log_section(survey: Survey) -> Section | Absent:
    """Impressions, clicks and CTR by day or week, and how well an AUC could be measured on the last days."""
    heading = ("log", "The log over time", "How many clicks are there, and are they steady?")
    if not survey.impressions:
        return Absent(*heading, "There is no table of impressions, so no ranker can be trained.", None)
    found = plots.periods(survey.first_day, survey.click_days)
    bar = plots.BARS[plots.bar_days(survey.days)]
    quiet = sum(1 for shown, _ in survey.click_days if shown == 0)
    return Section(
        *heading,
        answer=(
            f"{survey.impressions:,} impressions of {survey.users:,} users on {survey.days:,} days "
            f"({survey.first_day} to {survey.last_day}, UTC), {survey.clicks:,} of them clicked: a CTR of "
            f"{share(survey.clicks, survey.impressions)}."
        ),
        origin=None,
        sentences=(
            *_power(survey),
            *([f"On {quiet:,} days in between nothing was shown."] if quiet else []),
        ),
        plots=(
            Plot(
                f"Impressions, clicks and CTR by {bar}",
                "A step in the CTR may be a change of the shop or of what is logged: features of the days "
                "before it would mislead a ranker. The band is a 95 % interval (Wilson) as of independent "
                "impressions. The first and the last bar may be cut.",
                svg_source(plots.log_by_day(found)),
                tabulated=False,
            ),
        ),
    )


def _power(survey: Survey) -> list[str]:
    """What the test that `dashclip init` would choose can show."""
    if not 0 < survey.clicks < survey.impressions:
        return ["All impressions have the same outcome, so no ranker can learn from them."]
    split = draft_features(survey).content["split"]
    if split["method"] != "global":
        return ["The log covers too few days to test on later ones; dashclip init would cut it by users."]
    days = split["test_days"]
    shown, clicks = (sum(part) for part in zip(*survey.click_days[-days:], strict=True))
    if not 0 < clicks < shown:
        return [f"The last {days} days have no clicks, or nothing else: they cannot be tested on."]
    return [
        f"On the last {days} days, on which dashclip init would test, {expected_sentence(clicks, shown)}. "
        "After a training, the page of its sweep says so by its own intervals."
    ]


def frequencies_section(facts: Facts) -> Section | Absent:
    """The most frequent queries and products."""
    heading = ("frequent", "Queries and products", "What is searched and shown most?")
    if facts.products is None:
        return Absent(*heading, "There is no table of impressions.", None)
    sentences = [_spread("products", facts.products)]
    grids = [_top("Products with most impressions.", "Product", facts.products)]
    if facts.queries is not None:
        sentences.insert(0, _spread("queries", facts.queries))
        grids.insert(0, _top("Queries with most impressions, as typed.", "Query", facts.queries))
        if facts.queries.without:
            sentences.append(f"{facts.queries.without:,} impressions have no query.")
        answer = f"The query {facts.queries.top[0].name!r}, and the product {facts.products.top[0].name!r}."
    else:
        sentences.append("The impressions have no queries: a ranker compares products with histories alone.")
        answer = f"The product {facts.products.top[0].name!r}; there are no queries."
    return Section(*heading, answer=answer, origin=None, sentences=tuple(sentences), grids=tuple(grids))


def _spread(plural: str, found: Frequency) -> str:
    return (
        f"{found.distinct:,} {plural} have impressions; the {found.head:,} most frequent "
        f"({share(found.head, found.distinct)}) have half of them."
    )


def _top(caption: str, column: str, found: Frequency) -> Grid:
    rows = tuple(
        (one.name, f"{one.impressions:,}", f"{one.clicks:,}", share(one.clicks, one.impressions))
        for one in found.top
    )
    return Grid(caption, (column, "Impressions", "Clicks", "CTR"), rows)


def purchases_section(survey: Survey, facts: Facts) -> Section | Absent:
    """How many purchases users have."""
    heading = ("purchases", "Purchases", "How much history do users have?")
    if not survey.purchases:
        reason = "There is no table of purchases: every history is empty, so no ranker reads it."
        return Absent(*heading, reason, None)
    without = facts.shown_users - facts.shown_buyers
    sentences = []
    answer = f"{survey.purchases:,} purchases of {survey.buyers:,} users"
    if facts.shown_users:
        answer += f"; {share(facts.shown_buyers, facts.shown_users)} of the users who saw impressions bought"
        sentences.append(
            "Of a user's purchases, an impression has those before it as its history; so less than this is "
            "known at most impressions."
        )
    rows = [
        *([("none, but impressions", f"{without:,}", share(without, facts.shown_users))] if without else []),
        *(
            (name, f"{users:,}", share(users, survey.buyers))
            for name, users in zip(plots.group_names(), facts.purchase_groups, strict=True)
        ),
    ]
    return Section(
        *heading,
        answer=f"{answer}.",
        origin=None,
        sentences=tuple(sentences),
        grids=(
            Grid(
                "Shares are of all buyers; of those without purchases, of all users who saw impressions.",
                ("Purchases of a user", "Users", "Share"),
                tuple(rows),
            ),
        ),
        plots=(
            Plot(
                "Users by their purchases",
                "Grey: users who saw impressions and bought nothing.",
                svg_source(plots.users_by_purchases(facts.purchase_groups, without)),
                narrow=True,
            ),
        ),
    )
