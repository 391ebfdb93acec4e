"""Bring your own vectors: is the ranker better with them than without, and how sure is that?

    python -m experiments.examples.bring_your_own_vectors FEATURES VECTORS OUT

FEATURES is a feature set (`rank_your_log` leaves one in OUT/features). VECTORS is a Parquet file with the
columns `product_id` and one of lists of floats, from any encoder. OUT receives the runs and report.html.
"""

import sys
from pathlib import Path

from experiments.api import (
    SweepConfig,
    VariantConfig,
    build_report,
    execute_sweep,
    import_vectors,
    write_report,
)

#: The vector of the product and the mean vector of the user's purchases, with their cosine.
SEMANTIC = {"entities": ["product", "history"]}


def compare(features: Path, vectors: Path, out: Path, *, seeds: tuple[int, ...] = (1, 2, 3, 4, 5)) -> float:
    """Train both variants with every seed; the mean difference of their AUC on the test days."""
    table = import_vectors(vectors, out / "products", kind="product", encoder_id=vectors.stem)
    config = SweepConfig(
        name="with and without my vectors",
        baseline="without",
        seeds=seeds,
        features=features,
        product_table=table.folder,
        variants={"without": VariantConfig(), "with": VariantConfig(ranker={"semantic": SEMANTIC})},
    )
    for folder, error in execute_sweep(config, out).items():
        if error is not None:
            raise SystemExit(f"{folder}: {error}")
    report = build_report(out)
    print(f"written: {write_report(report, out)['page']}")
    difference = report.variants["with"].slices["all"].difference
    assert difference is not None  # both variants have finished
    return float(difference.auc.mean)


if __name__ == "__main__":  # the sweep starts processes, which import this module again
    print(f"AUC with minus without: {compare(*map(Path, sys.argv[1:4])):+.4f}")
