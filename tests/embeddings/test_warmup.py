"""The text warm-up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.catalog import ProductCatalog
from embeddings.dashclip import DashClipEncoder
from embeddings.distributed import Ranks
from embeddings.losses import NO_GROUP
from embeddings.stages import InputConfig, new_encoder, warm_up
from embeddings.training import train
from embeddings.warmup import WarmupConfig, WarmupTask
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder

PRODUCTS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("warmup"), products=PRODUCTS, without_title={3})


def config(**changes: object) -> WarmupConfig:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "checkpoint_every_steps": 1}
    return WarmupConfig.model_validate(settings | changes)


def task_of(data: Path, encoder: DashClipEncoder | None = None, **changes: object) -> WarmupTask:
    catalog = ProductCatalog.open(data, modalities=("text",))
    return WarmupTask(
        encoder or small_encoder(),
        catalog,
        config=config(**changes),
        usable_P=np.ones(len(catalog), dtype=bool),
        device=torch.device("cpu"),
        ranks=Ranks(),
    )


def test_products_without_a_title_take_no_part_and_evaluation_products_are_not_trained_on(data: Path) -> None:
    task = task_of(data)
    assert 3 not in {*task.train.tolist(), *task.evaluation.tolist()}
    assert not {*task.train.tolist()} & {*task.evaluation.tolist()}
    assert len(task.train) + len(task.evaluation) == PRODUCTS - 1


def test_too_few_titles_are_refused_with_their_number(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=4, without_title={0, 1})
    with pytest.raises(ValueError, match="at least four products with a title, got 2"):
        task_of(data)


def test_only_the_text_encoder_and_its_projection_move(data: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.product.state_dict().items()}
    train(task_of(data, encoder), tmp_path, config=config(), fingerprint="f")
    moved = {name for name, value in encoder.product.state_dict().items() if not value.equal(before[name])}
    assert "text_proj.weight" in moved
    assert "text.embeddings.word_embeddings.weight" in moved
    frozen = ("vision", "itm_head", "product_proj")
    assert not [name for name in moved if name.startswith(frozen) or "crossattention" in name]


def test_each_epoch_asks_new_queries_for_the_same_titles_and_a_resumed_one_the_same(data: Path) -> None:
    task = task_of(data)

    def asked(epoch: int, first_step: int = 0) -> dict[int, list[int]]:
        found = {}
        for batch in task.micro_batches(epoch, first_step):
            for group, ids in zip(batch.group_B.tolist(), batch.queries.ids_BT.tolist(), strict=True):
                found[group] = [token for token in ids if token]
        return found

    first, second, resumed = asked(0), asked(1), asked(0, 1)
    common = first.keys() & second.keys()
    assert any(first[group] != second[group] for group in common)
    assert resumed.items() <= first.items()
    assert 0 < len(resumed) < len(first)


def test_training_teaches_queries_to_find_their_titles(data: Path, tmp_path: Path) -> None:
    task = task_of(data, epochs=30, learning_rate=5e-3, evaluation_share=0.3)
    task.module.eval()
    with torch.no_grad():
        before = task.evaluate()
    outcome = train(task, tmp_path, config=task.config, fingerprint="f")
    assert outcome.best["loss"] < before["loss"] - 0.2
    assert outcome.best["query_finds_title"] >= before["query_finds_title"]


def test_the_product_embedding_starts_where_the_text_features_are(data: Path, tmp_path: Path) -> None:
    start = new_encoder(data, size="tiny", inputs=InputConfig(), seed=0)
    run = warm_up(data, tmp_path / "run", start=start, config=config())
    product = run.encoder.product
    assert product.product_proj.weight.equal(product.text_proj.weight)
    assert not product.text_proj.weight.equal(start.product.text_proj.weight)
    assert run.encoder.stage == "initial"
    again = warm_up(data, tmp_path / "run", start=start, config=config())
    assert again.outcome is None
    assert again.encoder.encoder_id == run.encoder.encoder_id


def test_lookalikes_are_no_negatives_of_each_other(data: Path) -> None:
    task = task_of(data)
    for batch in task.micro_batches(0, 0):
        assert (batch.group_B != NO_GROUP).all()
        groups = torch.from_numpy(task.catalog.group_P)
        assert set(batch.group_B.tolist()) <= set(groups.tolist())
