"""What is held out has no part in any stage: other held-out products and queries leave the same weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.catalog.holdout import TEST, TRAIN, HoldoutConfig, product_roles, query_roles
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.run_folder import InputConfig, StageRun
from embeddings.stages.runs import align, new_encoder, pretrain, warm_up
from embeddings.stages.warmup import ImageWarmupConfig, WarmupConfig
from tests.embeddings.small_catalog import FIRST_ID, draw_shape, write_small_catalog
from tests.embeddings.small_encoders import align_config, pretrain_config, small_encoder
from tests.embeddings.training.training_child import TUPLES

PRODUCTS = 40
INPUTS = InputConfig(
    holdout=HoldoutConfig(test_query_share=0.2, validation_query_share=0.2, test_product_share=0.2)
)
WARMUP = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-3}


def as_test_query(query: str) -> str:
    """Another text with the role of a test query, at the same place among sorted queries."""
    return next(
        text
        for text in (f"{query} black purple ring {number}" for number in range(1000))
        if query_roles([text], INPUTS.holdout)[0] == TEST
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder, and one with other titles, pictures and queries where they are held out."""
    folder = write_small_catalog(tmp_path_factory.mktemp("held_out") / "data", products=PRODUCTS)
    other = shutil.copytree(folder, folder.parent / "other")
    products, relevance = (pq.read_table(folder / f"{name}.parquet") for name in ("products", "relevance"))
    held_out_P = product_roles(products["product_id"].combine_chunks(), INPUTS.holdout) == TEST
    assert 4 <= held_out_P.sum() <= PRODUCTS // 2
    titles = pc.if_else(pa.array(held_out_P), "Dunwa Black Bar Black Bar", products["title"])
    pq.write_table(products.set_column(1, "title", titles), other / "products.parquet")
    generator = np.random.default_rng(0)
    for product in np.flatnonzero(held_out_P).tolist():
        picture = draw_shape("black", "bar", side=32, generator=generator)
        picture.save(other / "images" / f"{FIRST_ID + product}.png")
    texts = relevance["query"].to_pylist()
    asked = sorted(set(texts))
    roles = dict(zip(asked, query_roles(asked, INPUTS.holdout).tolist(), strict=True))
    changed = {text: as_test_query(text) if roles[text] == TEST else text for text in asked}
    assert 3 <= sum(new != old for old, new in changed.items()) <= len(asked) // 2
    assert sorted(changed.values()) == list(changed.values())
    column = pa.array([changed[text] for text in texts])
    pq.write_table(relevance.set_column(0, "query", column), other / "relevance.parquet")
    return folder, other


def text_warmup(data: Path, folder: Path) -> StageRun:
    return warm_up(data, folder, start=small_encoder(), config=WarmupConfig(**WARMUP), inputs=INPUTS)


def image_warmup(data: Path, folder: Path) -> StageRun:
    return warm_up(data, folder, start=small_encoder(), config=ImageWarmupConfig(**WARMUP), inputs=INPUTS)


def stage_1(data: Path, folder: Path) -> StageRun:
    config = pretrain_config(epochs=1)
    return pretrain(data, folder, start=small_encoder(), config=config, inputs=INPUTS)


def stage_2(data: Path, folder: Path, *, fusion: str = "grounded") -> StageRun:
    return align(
        data,
        folder,
        start=small_encoder(fusion=fusion),
        config=align_config(
            batch_size=64,
            title_query_weight=1.0,
            product_negatives=32,
            graded_pairs_weight=1.0,
            completion={"epochs": 1, "draws": 1},
        ),
        tuple_config=TUPLES,
        inputs=INPUTS,
    )


def stage_2_with_completion(data: Path, folder: Path) -> StageRun:
    return stage_2(data, folder, fusion="completion")


@pytest.mark.parametrize("stage", [text_warmup, image_warmup, stage_1, stage_2, stage_2_with_completion])
def test_other_held_out_products_and_queries_leave_the_same_weights(
    data: tuple[Path, Path], tmp_path: Path, stage: Callable[[Path, Path], StageRun]
) -> None:
    torch.set_num_threads(1)
    one, other = (stage(folder, tmp_path / folder.name).encoder for folder in data)
    for part in ("product", "query"):
        first, second = getattr(one, part), getattr(other, part)
        assert (first is None) == (second is None)
        if first is not None:
            weights = second.state_dict()
            assert [
                name for name, value in first.state_dict().items() if not value.equal(weights[name])
            ] == []


def test_other_products_that_are_trained_on_leave_other_weights(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    """So that equal weights above say something."""
    folder = data[0]
    products = pq.read_table(folder / "products.parquet")
    seen_P = product_roles(products["product_id"].combine_chunks(), INPUTS.holdout) == TRAIN
    other = shutil.copytree(folder, tmp_path / "other")
    first = int(np.flatnonzero(seen_P)[0])
    titles = pc.if_else(pa.array(np.arange(PRODUCTS) == first), "Borvo Pink Bar", products["title"])
    pq.write_table(products.set_column(1, "title", titles), other / "products.parquet")
    one, changed = (
        text_warmup(data_folder, tmp_path / f"run-{number}").encoder.product.text_proj.weight
        for number, data_folder in enumerate((folder, other))
    )
    assert not one.equal(changed)


def test_each_seed_draws_its_own_encoder_and_the_same_seed_the_same(data: tuple[Path, Path]) -> None:
    def drawn(seed: int) -> DashClipEncoder:
        return new_encoder(data[0], size="tiny", inputs=INPUTS, seed=seed)

    one, again, other = (drawn(seed).product.state_dict() for seed in (1, 1, 2))
    assert all(value.equal(again[name]) for name, value in one.items())
    random = {name for name, value in one.items() if len(value.unique()) > 1 and "position_ids" not in name}
    assert {name for name, value in one.items() if not value.equal(other[name])} == random
