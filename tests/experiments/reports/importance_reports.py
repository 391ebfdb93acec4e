"""Made-up importance reports: many features, three methods, slices, groups, from a known order."""

import numpy as np
from scipy import stats

from experiments.importance.result import (
    Agreement,
    ConvergenceDelta,
    CorrelatedPair,
    FeatureImportance,
    ImportanceReport,
    MethodAgreement,
    SeedAgreement,
    SliceRows,
    Spread,
)

#: AUC that permutation loses in truth; what is not named loses nothing.
TRUTH = {
    "product embedding": 0.0213,
    "query embedding": 0.0078,
    "purchase history": 0.0081,
    "product_ctr_28d": 0.0066,
    "position": 0.0412,
    "query_product_ctr_28d": 0.0031,
    "similarity product-query": 0.0019,
    "user_ctr_28d": 0.0012,
    "user_clicks_28d": -0.0009,
}
SEMANTIC = (
    "product embedding",
    "query embedding",
    "purchase history",
    "similarity product-query",
    "similarity product-history",
    "similarity query-history",
)
COUNTERS = tuple(
    f"{key}_{kind}_{days}d"
    for key in ("query", "product", "user", "query_product")
    for days in (1, 7, 28)
    for kind in ("impressions", "clicks", "ctr")
)
OTHERS = ("price", "user_id", "product_id", "query", "aisle", "brand", "device", "position", "hour_of_day")
GROUPS = {
    "DashCLIP tower": SEMANTIC,
    "DCN tower": COUNTERS + OTHERS,
    "counters": COUNTERS,
    "user side": ("purchase history", "user_id", "user_ctr_28d", "user_clicks_28d"),
    "query side": ("query embedding", "query"),
}
SLICES = {
    "has purchases": 8313,
    "no purchases": 4556,
    "head query": 6400,
    "torso query": 4780,
    "tail query": 1689,
    "product seen in training": 12_500,
    "new product": 369,
}
AISLES = {f"aisle: {name}": 400 + 90 * i for i, name in enumerate(("Baby", "Dairy & Eggs", "Snacks"))}


def made_report(
    *,
    runs: int = 5,
    methods=("permutation", "ablation", "integrated_gradients"),
    features=(*SEMANTIC, *COUNTERS, *OTHERS),
    groups=GROUPS,
    slices=SLICES | AISLES,
    truth=TRUTH,
    noise: float = 0.0004,
    **changes,
) -> ImportanceReport:
    """A report whose permutation importances are `truth` with noise over runs; other methods rescale it.

    Purchase history matters to users with purchases only, a group loses what its features lose together.
    """
    rng = np.random.default_rng(5)
    scale = {"permutation": 1.0, "ablation": 1.3, "integrated_gradients": 40.0}
    metrics = {"permutation": ("auc", "logloss"), "ablation": ("auc",), "integrated_gradients": ("logit",)}
    entries = []

    def add(name, kind, members, method, metric, slice, value, sd):
        seen = value + sd * rng.normal(size=max(runs, 3))
        seen = abs(seen) if method == "integrated_gradients" else seen
        mean, sd = float(seen.mean()), float(seen.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(seen) - 1) * sd / np.sqrt(len(seen)))
        entries.append(
            FeatureImportance(
                name=name,
                kind=kind,
                members=members,
                method=method,
                metric=metric,
                slice=slice,
                mean=mean,
                sd=sd,
                low=mean - half,
                high=mean + half,
                runs=runs,
            )
        )

    every = [(name, "feature", (name,), truth.get(name, 0.0)) for name in features]
    every += [
        (name, "group", members, 1.5 * sum(truth.get(member, 0.0) for member in members))
        for name, members in groups.items()
    ]
    for method in methods:
        for metric in metrics[method]:
            for name, kind, members, value in every:
                spread = noise * (1 + 5 * abs(value) / 0.04)
                add(name, kind, members, method, metric, "all", scale[method] * value, scale[method] * spread)
    for slice, rows in slices.items():
        for name, kind, members, value in every:
            there = 0.0 if (name, slice) == ("purchase history", "no purchases") else value
            add(name, kind, members, "permutation", "auc", slice, there, noise * (12_869 / rows) ** 0.5)
    several = len(methods) > 1
    content = {
        "command": "dashclip importance runs/demo",
        "commit": "abc1234",
        "created": "2026-11-23T05:00:00+00:00",
        "simulated": True,
        "data": "a simulated marketplace",
        "split": "test",
        "variant": "dcn_pq_sim_history",
        "runs": tuple(f"runs/demo/dcn_pq_sim_history/seed-{seed}" for seed in range(1, runs + 1)),
        "seeds": tuple(range(1, runs + 1)),
        "repeats": 5,
        "permutation_seed": 0,
        "rows": 12_869,
        "clicks": 1566,
        "base": {"auc": Spread(mean=0.7989, sd=0.0012), "logloss": Spread(mean=0.3043, sd=0.0005)},
        "slices": {
            name: SliceRows(rows=rows, clicks=rows // 8, auc=0.79, logloss=0.3)
            for name, rows in slices.items()
        },
        "features": tuple(entries),
        "baselines": {"price": "its mean over the training rows", "product embedding": "zeros"},
        "agreement": Agreement(
            methods=(
                MethodAgreement(
                    a="permutation",
                    b="ablation",
                    kendall=0.71,
                    spearman=0.86,
                    low=0.78,
                    high=0.92,
                    top_10_shared=8,
                ),
                MethodAgreement(
                    a="permutation",
                    b="integrated_gradients",
                    kendall=0.44,
                    spearman=0.58,
                    low=0.36,
                    high=0.74,
                    top_10_shared=6,
                ),
            )
            if several
            else (),
            seeds={method: SeedAgreement(spearman=0.7, low=0.6, high=0.8) for method in methods}
            if runs > 1
            else {},
            sentence="Permutation and ablation agree; integrated gradients ranks ids higher."
            if several
            else "",
        ),
        "correlated_pairs": (
            CorrelatedPair(
                a="product_ctr_28d",
                b="product_ctr_7d",
                correlation=0.91,
                single_a=0.0066,
                single_b=0.0001,
                joint=0.0102,
                sentence="Product CTR over 28 and over 7 days share credit: together they cost more.",
            ),
        ),
        "convergence_delta": ConvergenceDelta(mean=0.0012, largest=0.021, steps=50)
        if "integrated_gradients" in methods
        else None,
        "speedup_to_naive": 4.2,
    }
    return ImportanceReport(**content | changes)
