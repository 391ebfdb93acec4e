"""Small made-up sweep folders: predictions that hold more or less of a known truth, without any training."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ranking.metrics import sigmoid

PAPER_VARIANTS = ("dcn", "dcn_pq_sim", "dcn_pq_sim_history", "dcn_pq_sim_history_random")


def write_sweep(
    folder: Path,
    *,
    rows: int = 600,
    users: int = 80,
    variants: tuple[str, ...] = PAPER_VARIANTS,
    seeds: tuple[int, ...] = (1, 2, 3),
    queries: bool = True,
    truth: bool = True,
    simulated: bool = True,
    rng_seed: int = 11,
    **record,
) -> Path:
    """A finished sweep. A variant with `sim` knows a relevance term, one with `history` a taste term that
    only users with purchases have; `random` knows neither, `dcn` alone only a base term."""
    rng = np.random.default_rng(rng_seed)
    user = rng.integers(0, users, rows)
    bought = user < 2 * users // 3
    base, relevance = rng.normal(0, 0.8, rows), rng.normal(0, 0.6, rows)
    taste = np.where(bought, rng.normal(0, 0.9, rows), 0.0)
    probability = sigmoid(-1.6 + base + relevance + taste)
    clicked = (rng.random(rows) < probability).astype(np.int8)
    common = {
        "impression_id": pa.array(np.arange(rows) + 10_000),
        "clicked": pa.array(clicked),
        "user_index": pa.array(user.astype(np.int32)),
        "query_index": pa.array(
            (rng.zipf(1.5, rows) % 60 if queries else np.full(rows, -1)).astype(np.int32)
        ),
        "product_index": pa.array(rng.integers(0, 50, rows).astype(np.int32)),
        "slice_has_purchases": pa.array(bought),
        "slice_seen_product": pa.array(rng.random(rows) < 0.9),
        "slice_query_frequency": pa.array(
            (rng.integers(0, 3, rows) if queries else np.full(rows, -1)).astype(np.int8)
        ),
    }
    for variant in variants:
        for seed in seeds:
            noise = np.random.default_rng([variants.index(variant), seed]).normal(0, 0.25, rows)
            logit = -1.6 + base + noise
            if "random" not in variant:
                logit = logit + ("sim" in variant) * 0.8 * relevance + ("history" in variant) * 0.8 * taste
            run = folder / variant / f"seed-{seed}"
            (run / "predictions").mkdir(parents=True)
            pq.write_table(
                pa.table(common | {"logit": pa.array(logit.astype(np.float32))}),
                run / "predictions" / "test.parquet",
            )
            end = 0.74 + 0.01 * variants.index(variant) + 0.002 * seed
            history = [
                {
                    "step": step,
                    "rows": 4096 * step,
                    "train_loss": 0.4,
                    "validation_auc": end - 0.1 / step,
                    "validation_logloss": 0.3,
                }
                for step in (1, 2, 4, 8, 16)
            ]
            _write_json(run / "metrics.json", {"history": history, "test": {}, "validation": {}})
            _write_json(run / "run.json", {"variant": variant, "seed": seed, "rows_per_s": 20_000.0 + seed})
            read = {"product": "p" in variant, "query": "q" in variant, "history": "history" in variant}
            semantic = {
                "entities": [name for name, reads in read.items() if reads],
                "initialisation": "random" if "random" in variant else "pretrained",
            }
            config = {"ranker": {"semantic": semantic if semantic["entities"] else None}}
            _write_json(run / "config.json", config)
            _write_json(
                run / "environment.json",
                {
                    "created": "2026-01-02T03:04:05+00:00",
                    "commit": "abc1234",
                    "cores": 2,
                    "cpu": "Example CPU",
                    "packages": {"torch": "2.13.0"},
                },
            )
    if truth:
        (folder / "truth").mkdir()
        shuffled = rng.permutation(rows)
        pq.write_table(
            pa.table(
                {
                    "impression_id": pa.array(np.concatenate([shuffled + 10_000, np.arange(500)])),
                    "click_probability": pa.array(np.concatenate([probability[shuffled], np.full(500, 0.5)])),
                }
            ),
            folder / "truth" / "impressions.parquet",
        )
    _write_json(
        folder / "sweep.json",
        {
            "name": "example",
            "baseline": "dcn",
            "variants": list(variants),
            "seeds": list(seeds),
            "simulated": simulated,
            "truth": str(folder / "truth" / "impressions.parquet") if truth else None,
            "data": "made-up rows",
            "features": "features",
            "command": "dashclip sweep example.toml",
        }
        | record,
    )
    return folder


def _write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content))
