"""Products that stages are measured on are trained on in none of them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.catalog.holdout import TEST, HoldoutConfig, product_roles
from embeddings.catalog.products import ProductCatalog
from embeddings.stages.product_parts import ProductParts, unseen_products
from embeddings.stages.run_folder import InputConfig, StageError
from embeddings.stages.runs import align, pretrain, warm_up
from embeddings.stages.stage1 import PretrainTask
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask, TextWarmupTask, WarmupConfig
from embeddings.training.evaluation import no_better_than_chance
from embeddings.training.ranks import Ranks
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_config, pretrain_config, product_parts, small_encoder

PRODUCTS = 90
SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many products lack an image: each warm-up and stage can use another part of them."""
    lacking = {"without_image": set(range(0, PRODUCTS, 3)), "without_title": set(range(1, PRODUCTS, 7))}
    return write_small_catalog(tmp_path_factory.mktemp("parts"), products=PRODUCTS, **lacking)


def tasks(data: Path, **seeds: int) -> list[TextWarmupTask | ImageWarmupTask | PretrainTask]:
    catalog = ProductCatalog.open(data)
    common: dict[str, Any] = {
        "parts": ProductParts.of(catalog, HoldoutConfig(validation_product_share=0.2)),
        "device": torch.device("cpu"),
        "ranks": Ranks(),
    }
    text = WarmupConfig.model_validate({**SETTINGS, "seed": 1})
    image = ImageWarmupConfig.model_validate({**SETTINGS, "batch_size": 16, "seed": 2})
    return [
        TextWarmupTask(small_encoder(), catalog, config=text, **common),
        ImageWarmupTask(small_encoder(), catalog, config=image, **common),
        PretrainTask(small_encoder(), catalog, config=pretrain_config(seed=3), **common),
    ]


def test_no_stage_is_measured_on_a_product_that_any_stage_is_trained_on(data: Path) -> None:
    stages = tasks(data)
    trained = {product for task in stages for product in task.train.tolist()}
    measured = {product for task in stages for product in task.evaluation.tolist()}
    assert not trained & measured
    tested = product_roles(ProductCatalog.open(data).ids, HoldoutConfig()) == TEST
    assert not set(np.flatnonzero(tested).tolist()) & (trained | measured)


def test_image_finds_title_is_measured_alike_by_warm_up_and_stage_1_whatever_their_batches(
    data: Path,
) -> None:
    _, warmup, stage1 = tasks(data)
    assert warmup.batch_rows != stage1.batch_rows
    for task in (warmup, stage1):
        task.module.eval()
    with torch.no_grad():
        found = [task.evaluate() for task in (warmup, stage1)]
    assert found[0]["rows"] == found[1]["rows"] == len(warmup.evaluation)
    # The same encoder, hence the same share.
    assert found[0]["image_finds_title"] == found[1]["image_finds_title"]
    for name in ("image_finds_title_at_chance", "contrastive_loss_at_chance"):
        assert found[0][name] == pytest.approx(found[1][name])


def test_every_measure_of_the_warm_ups_and_stage_1_has_its_chance_level(data: Path) -> None:
    for task in tasks(data):
        task.module.eval()
        with torch.no_grad():
            found = task.evaluate()
        bare = {name for name in found if not name.endswith("_at_chance")} - {"loss", "rows"}
        assert {f"{name}_at_chance" for name in bare} == set(found) - bare - {"loss", "rows"}
        assert bare >= {"contrastive_loss"}


def test_an_untrained_encoder_is_no_better_than_chance_at_finding_titles(data: Path) -> None:
    for task in tasks(data)[1:]:
        task.module.eval()
        with torch.no_grad():
            poor = no_better_than_chance(task.evaluate())
        assert {"contrastive_loss", "image_finds_title"} <= set(poor)


def test_matching_that_always_says_the_same_is_named_whatever_stops_early(data: Path) -> None:
    for early_stop in ("matching", "contrastive"):
        catalog = ProductCatalog.open(data)
        task = PretrainTask(
            small_encoder(),
            catalog,
            config=pretrain_config(early_stop=early_stop),
            parts=product_parts(catalog),
            device=torch.device("cpu"),
            ranks=Ranks(),
        )
        task.module.eval()
        with torch.no_grad():
            task.encoder.product.itm_head.weight.zero_()
            task.encoder.product.itm_head.bias.copy_(torch.tensor([2.0, 1.0]).log())
            found = task.evaluate()
        assert found["matching_loss_at_chance"] == pytest.approx(0.6365, abs=1e-4)
        assert {"matching_loss", "matching_accuracy"} <= set(no_better_than_chance(found))


def test_the_constant_answer_of_matching_is_that_of_the_pairs_there_are(tmp_path: Path) -> None:
    """Products of one group have no unmatched pairs: then saying yes costs nothing."""
    data = write_small_catalog(tmp_path, products=24)
    table = pq.read_table(data / "products.parquet")
    titles = ["Acme Red Circle"] * 24
    pq.write_table(table.set_column(1, "title", [titles]), data / "products.parquet")
    catalog = ProductCatalog.open(data)
    task = PretrainTask(
        small_encoder(),
        catalog,
        config=pretrain_config(),
        parts=product_parts(catalog, validation_within_groups=True),
        device=torch.device("cpu"),
        ranks=Ranks(),
    )
    task.module.eval()
    with torch.no_grad():
        found = task.evaluate()
    assert (found["matching_loss_at_chance"], found["matching_accuracy_at_chance"]) == (0, 1)
    assert found["image_finds_title_at_chance"] == 1


def test_who_is_kept_aside_depends_on_no_order_and_lookalikes_stay_together(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "one", products=48)
    shutil.copy(data / "images" / "100.png", data / "images" / "130.png")
    turned = tmp_path / "two"
    shutil.copytree(data, turned)
    table = pq.read_table(data / "products.parquet")
    pq.write_table(table.take(list(reversed(range(48)))), turned / "products.parquet")
    for seed in range(4):
        found = []
        for folder in (data, turned):
            catalog = ProductCatalog.open(folder)
            config = HoldoutConfig(validation_product_share=0.3, seed=seed)
            parts = ProductParts.of(catalog, config)
            ids = np.array(catalog.ids.to_pylist())
            found.append(set(ids[parts.validation_P].tolist()))
            groups = [set(catalog.group_P[part_P].tolist()) for part_P in parts]
            assert groups[0].isdisjoint(groups[1])
        assert found[0] == found[1]


def test_of_each_kind_of_product_two_are_kept_aside_and_at_most_so_many(data: Path) -> None:
    catalog = ProductCatalog.open(data)
    kinds = {}
    for config in (
        HoldoutConfig(test_product_share=0, validation_product_share=0.001),
        HoldoutConfig(test_product_share=0, validation_product_share=0.9, most_validation_products=2),
    ):
        validation = np.flatnonzero(ProductParts.of(catalog, config).validation_P).tolist()
        kinds = {(catalog.image_paths[row] is not None, bool(catalog.titles[row])) for row in validation}
        assert kinds >= {(True, True), (False, True), (True, False)}
        assert 2 * len(kinds) <= len(validation) <= 2 * len(kinds) + 2  # lookalikes come along
    assert len(kinds) == 4


def never() -> Any:
    raise AssertionError("the warm-ups have started")


def test_stage_2_without_grades_ends_before_its_warm_ups_and_says_what_is_possible(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    (data / "relevance.parquet").unlink()
    with pytest.raises(StageError, match=r"needs grades .* no relevance table; .*encode pretrain"):
        align(data, tmp_path / "run", start=never, config=align_config())


def test_grades_of_which_no_tuple_can_be_made_end_before_the_warm_ups(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    table = pq.read_table(data / "relevance.parquet")
    zeros = np.zeros(len(table), np.int8)
    pq.write_table(table.set_column(2, "grade", [zeros]), data / "relevance.parquet")
    with pytest.raises(ValueError, match="no tuple can be made"):
        align(data, tmp_path / "run", start=never, config=align_config())


def test_stage_1_without_images_ends_before_its_warm_ups(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24, without_image=set(range(22)))
    with pytest.raises(ValueError, match="four products with an image and a title, got 2 of 24"):
        pretrain(data, tmp_path / "run", start=never, config=pretrain_config())


def test_the_run_of_a_stage_keeps_its_best_evaluation_beside_chance(data: Path, tmp_path: Path) -> None:
    remarks = []
    run = warm_up(
        data,
        tmp_path / "run",
        start=small_encoder(),
        config=ImageWarmupConfig.model_validate({**SETTINGS, "learning_rate": 1e-9}),
        inputs=InputConfig(),
        show=lambda report: remarks.append(report.remark),
    )
    assert run.best["image_finds_title_at_chance"] > 0
    assert remarks[:-1] == [None] * (len(remarks) - 1)
    assert remarks[-1] is not None
    assert remarks[-1].startswith("image warm-up has learned nothing by contrastive_loss")
    again = warm_up(
        data,
        tmp_path / "run",
        start=small_encoder(),
        config=ImageWarmupConfig.model_validate({**SETTINGS, "learning_rate": 1e-9}),
        inputs=InputConfig(),
    )
    assert (again.best, again.counts) == (run.best, run.counts)


def test_a_test_product_whose_size_variant_is_trained_on_is_not_new(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=48)
    config = HoldoutConfig(test_product_share=0.3)
    catalog = ProductCatalog.open(data)
    tested = np.flatnonzero(product_roles(catalog.ids, config) == TEST).tolist()
    trained = np.flatnonzero(ProductParts.of(catalog, config).train_P).tolist()
    assert unseen_products(catalog, config)[tested].all(), "here nothing looks alike"
    table = pq.read_table(data / "products.parquet")
    titles = table["title"].to_pylist()
    titles[tested[0]], titles[trained[0]] = "Cola, 330 ml", "Cola, 6 x 1 l"
    titles[tested[1]], titles[tested[2]] = "Tea, 50 g", "Tea, 100 g"
    pq.write_table(table.set_column(1, "title", [titles]), data / "products.parquet")
    catalog = ProductCatalog.open(data)
    unseen_P = unseen_products(catalog, config)
    assert not unseen_P[tested[0]]
    assert unseen_P[tested[1:]].all(), "both variants are kept from training"
    assert not (unseen_P & ProductParts.of(catalog, config).train_P).any()
    few_titles = config.model_copy(update={"validation_within_groups": True})
    assert unseen_products(catalog, few_titles)[tested].all()
