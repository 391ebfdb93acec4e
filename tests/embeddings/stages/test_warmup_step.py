"""One step and one evaluation of both warm-ups against loops."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from embeddings.catalog.products import ProductCatalog
from embeddings.catalog.titles import title_query
from embeddings.stages.warmup import ImageBatch, ImageWarmupTask, TextBatch, TextWarmupTask
from embeddings.training.losses import NO_GROUP
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder
from tests.embeddings.stages.test_warmup import image_task_of, task_of

PRODUCTS, TEMPERATURE = 24, 0.2
CHANGES: dict[str, object] = {"temperature": TEMPERATURE, "evaluation_share": 0.25, "batch_size": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("warmup_step"), products=PRODUCTS)


def unit_vectors(task: TextWarmupTask | ImageWarmupTask, batch: TextBatch | ImageBatch) -> list[Tensor]:
    """Of titles and of what belongs to them."""
    product = task.encoder.product

    def of_text(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return product.text_features(product.text_tokens(ids_BT, mask_BT), mask_BT).detach().double()

    if isinstance(batch, TextBatch):
        return [of_text(texts.ids_BT, texts.mask_BT) for texts in (batch.titles, batch.queries)]
    products = batch.products
    image_BD = product.image_features(product.image_tokens(products.pixels_BCHW)).detach().double()
    return [of_text(products.ids_BT, products.mask_BT), image_BD]


def contrast(title_BD: Tensor, other_BD: Tensor, groups: list[int]) -> float:
    """Each picks the other side of its group, lookalikes in equal shares, out of all that have a group."""
    used = [row for row, group in enumerate(groups) if group != NO_GROUP]
    total = 0.0
    for one_BD, picked_BD in ((title_BD, other_BD), (other_BD, title_BD)):
        for row in used:
            terms = {
                column: math.exp(float(one_BD[row] @ picked_BD[column]) / TEMPERATURE) for column in used
            }
            same = [column for column in used if groups[column] == groups[row]]
            total -= sum(math.log(terms[column] / sum(terms.values())) for column in same) / len(same)
    return total / 2 / len(used)


def title_token_share(task: ImageWarmupTask, batch: ImageBatch) -> float:
    """Cross-entropy of the tokens of each title, weighed by how rare they are among the trained titles."""
    ids = [
        set(row[mask > 0].tolist())
        for row, mask in zip(batch.products.ids_BT, batch.products.mask_BT, strict=True)
    ]
    titles = [task.catalog.titles[row] for row in task.train.tolist()]
    tokens = task.encoder.tokenizer(titles, max_tokens=task.encoder.config.max_title_tokens)
    trained = [set(row[mask > 0].tolist()) for row, mask in zip(tokens.ids_BT, tokens.mask_BT, strict=True)]
    rarity = {
        token: math.log(len(trained) / sum(token in title for title in trained))
        for token in set.union(*trained)
    }
    product = task.encoder.product
    image_BD = product.projected_images(product.image_tokens(batch.products.pixels_BCHW))
    logit_BV = task.module.token_head(image_BD).detach().double().log_softmax(dim=1)  # type: ignore[operator]
    used = [row for row, group in enumerate(batch.group_B.tolist()) if group != NO_GROUP]
    total = 0.0
    for row in used:
        weights = {token: rarity.get(token, 0.0) for token in ids[row]}
        total -= sum(weight * float(logit_BV[row, token]) for token, weight in weights.items()) / sum(
            weights.values()
        )
    return total / len(used)


def some_batch(task: TextWarmupTask | ImageWarmupTask) -> TextBatch | ImageBatch:
    """Five products of an epoch; two look alike, and one has no group."""
    batch = task.batch(task.train[:5], 0)
    return batch._replace(group_B=torch.tensor([7, 3, 7, NO_GROUP, 0]))


def test_the_step_of_the_text_warm_up_is_a_contrast_of_titles_and_their_queries(data: Path) -> None:
    task = task_of(data, **CHANGES)
    batch = some_batch(task)
    expected = contrast(*unit_vectors(task, batch), batch.group_B.tolist())
    assert float(task.module(batch)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_step_of_the_image_warm_up_adds_the_weighted_tokens_of_titles(data: Path) -> None:
    task = image_task_of(data, token_weight=0.5, augmentation=None, **CHANGES)
    batch = some_batch(task)
    losses = task.module(batch)
    expected = contrast(*unit_vectors(task, batch), batch.group_B.tolist())
    tokens = title_token_share(task, batch)
    assert float(losses["contrast"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["tokens"]) == pytest.approx(tokens, rel=1e-5)
    assert float(losses["loss"].detach()) == pytest.approx(expected + 0.5 * tokens, rel=1e-5)


@pytest.mark.parametrize("of_images", [False, True])
def test_a_warm_up_is_evaluated_on_the_products_kept_aside(data: Path, of_images: bool) -> None:
    task = (
        image_task_of(data, token_weight=0.0, augmentation=None, **CHANGES)
        if of_images
        else task_of(data, **CHANGES)
    )
    kept = task.evaluation[: task.batch_rows]
    assert len(kept) == round(0.25 * PRODUCTS)
    batch = task.batch(kept, None)
    with torch.no_grad():
        measures = task.evaluate()
    title_BD, other_BD = unit_vectors(task, batch)
    groups = batch.group_B.tolist()
    for found_BD, expected_BD in zip(task.module.features(batch), (title_BD, other_BD), strict=True):
        torch.testing.assert_close(found_BD.detach().double(), expected_BD)
    assert groups == task.catalog.group_P[kept].tolist()
    assert measures["loss"] == pytest.approx(contrast(title_BD, other_BD, groups), rel=1e-5)
    nearest = (other_BD @ title_BD.T).argmax(dim=1).tolist()
    found = np.mean([groups[title] == groups[row] for row, title in enumerate(nearest)])
    assert measures[task.found_name] == pytest.approx(found)


def test_evaluation_queries_are_drawn_once_and_training_queries_by_epoch_seed_and_product(data: Path) -> None:
    task = task_of(data, seed=5)
    catalog = ProductCatalog.open(data, modalities=("text",))
    rows = task.train[:4]
    for epoch, draw in ((None, 0), (0, 1), (3, 4)):
        texts = [
            title_query(catalog.titles[row], np.random.default_rng((5, draw, row))) for row in rows.tolist()
        ]
        expected = task.encoder.tokenizer(texts, max_tokens=task.encoder.config.max_query_tokens)
        assert task.batch(rows, epoch).queries.ids_BT.equal(expected.ids_BT)


def test_an_epoch_of_a_warm_up_shows_each_product_at_most_once_in_equal_micro_batches(data: Path) -> None:
    task = task_of(data, batch_size=6, accumulation=2)
    groups = task.catalog.group_P
    batches = list(task.micro_batches(2, 0))
    assert [len(batch.group_B) for batch in batches] == [3] * (2 * task.steps_per_epoch)
    assert task.steps_per_epoch == len(task.train) // 6
    shown = [group for batch in batches for group in batch.group_B.tolist()]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(groups[task.train].tolist())
    resumed = list(task.micro_batches(2, 1))
    assert [batch.group_B.tolist() for batch in resumed] == [batch.group_B.tolist() for batch in batches[2:]]


def test_two_products_at_least_are_kept_aside(data: Path) -> None:
    assert len(task_of(data, evaluation_share=0.01).evaluation) == 2


def test_each_title_is_read_once_however_many_products_and_epochs_show_it(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data / "products.parquet")
    titles = [title if row % 3 else "one for all" for row, title in enumerate(table["title"].to_pylist())]
    place = table.schema.get_field_index("title")
    shutil.copytree(data, tmp_path / "data")
    pq.write_table(table.set_column(place, "title", pa.array(titles)), tmp_path / "data" / "products.parquet")
    encoder = small_encoder()
    read: list[int] = []
    encoder.product.text.register_forward_hook(
        lambda _module, _inputs, output: read.append(len(output.last_hidden_state))
    )
    task = image_task_of(tmp_path / "data", encoder=encoder, **CHANGES)
    for epoch in range(2):
        for batch in task.micro_batches(epoch, 0):
            task.module(batch)
    with torch.no_grad():
        task.evaluate()
    assert sum(read) == len(set(titles))
