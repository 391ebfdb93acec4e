"""Tiny encoders and what trains them on the miniature catalogue of `small_catalog`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import TupleConfig, build_tuples, read_grades
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.product_parts import ProductParts
from embeddings.stages.stage1 import PretrainConfig, PretrainTask
from embeddings.stages.stage2 import AlignTask, Tuples
from embeddings.training.ranks import Ranks
from tests.embeddings.small_catalog import small_tokenizer
from tests.tolerances import float32_drift

NEGATIVES = 3
#: Of the vectors of size "tiny". A layer sums over 32 values, 24 tokens, 32, 32 and 128; there are four of
#: them, two for images and two for titles; then five tokens of 32 lie side by side.
ROUNDING = float32_drift(4 * (32 + 24 + 32 + 32 + 128) + 5 * 32)


def small_encoder(*, seed: int = 0, **changes: Any) -> DashClipEncoder:
    """A tiny encoder whose biases and heads are not zero either; its fusion is the paper's unless changed."""
    tokenizer = small_tokenizer()
    config = EncoderConfig.preset("tiny", vocab_size=tokenizer.vocab_size).model_copy(
        update={"fusion": "grounded", **changes}
    )
    encoder = DashClipEncoder.new(config, tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.product.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return encoder


def batch_of(encoder: DashClipEncoder, catalog: ProductCatalog, index: list[int]) -> ProductBatch:
    return encoder.load_batch(catalog, index)


def product_parts(catalog: ProductCatalog, share: float = 0.2, **changes: Any) -> ProductParts:
    """Products to train on and, by this share, to measure on; none for tests."""
    holdout = HoldoutConfig(test_product_share=0.0, validation_product_share=share, **changes)
    return ProductParts.of(catalog, holdout)


def pretrain_config(**changes: Any) -> PretrainConfig:
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "queue_size": 12,
        "checkpoint_every_steps": 1,
    }
    return PretrainConfig.model_validate(settings | changes)


def align_config(**changes: Any) -> AlignConfig:
    settings = {
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "evaluations_per_epoch": 2,
        "checkpoint_every_steps": 1,
    }
    return AlignConfig.model_validate(settings | changes)


def pretrain_task(
    data: Path,
    *,
    encoder: DashClipEncoder | None = None,
    ranks: Ranks | None = None,
    evaluation_share: float = 0.2,
    **changes: Any,
) -> PretrainTask:
    catalog = ProductCatalog.open(data)
    return PretrainTask(
        encoder or small_encoder(),
        catalog,
        config=pretrain_config(**changes),
        parts=product_parts(catalog, evaluation_share),
        device=torch.device("cpu"),
        ranks=ranks or Ranks(),
    )


def build_small_tuples(data: Path, folder: Path) -> Tuples:
    """The same tuples for training and validation: the tests ask how they are used, not what they teach."""
    catalog, grades = ProductCatalog.open(data), read_grades(data)
    config = TupleConfig(max_positives=4, negatives=NEGATIVES)
    sets = [
        build_tuples(grades, catalog.aisles, folder / name, config=config, seed=seed)
        for seed, name in enumerate(("train", "validation"))
    ]
    return Tuples(*sets)


def align_task(
    data: Path,
    tuples: Tuples,
    *,
    encoder: DashClipEncoder | None = None,
    ranks: Ranks | None = None,
    trained_G: np.ndarray | None = None,
    **changes: Any,
) -> AlignTask:
    grades = read_grades(data)
    return AlignTask(
        encoder or small_encoder().with_query_encoder(),
        ProductCatalog.open(data),
        tuples,
        config=align_config(**changes),
        grades=grades,
        trained_G=np.ones(len(grades), bool) if trained_G is None else trained_G,
        device=torch.device("cpu"),
        ranks=ranks or Ranks(),
    )
