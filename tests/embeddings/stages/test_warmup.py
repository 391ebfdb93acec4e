"""The warm-ups of the text and of the image encoder."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.catalog.products import ProductCatalog
from embeddings.catalog.tokenizer import TokenBatch
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.run_folder import InputConfig, StageError
from embeddings.stages.runs import new_encoder, warm_up
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask, TextWarmupTask, WarmupConfig
from embeddings.training.loop import train
from embeddings.training.losses import NO_GROUP, rarity
from embeddings.training.ranks import Ranks
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import product_parts, small_encoder
from tests.embeddings.training.test_run_log import Listening, scalars

PRODUCTS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("warmup"), products=PRODUCTS, without_title={3})


def config(**changes: object) -> WarmupConfig:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "checkpoint_every_steps": 1}
    return WarmupConfig.model_validate(settings | changes)


def task_of(
    data: Path, encoder: DashClipEncoder | None = None, *, evaluation_share: float = 0.05, **changes: object
) -> TextWarmupTask:
    return TextWarmupTask(
        encoder or small_encoder(),
        ProductCatalog.open(data, modalities=("text",)),
        config=config(**changes),
        parts=product_parts(ProductCatalog.open(data), evaluation_share),
        device=torch.device("cpu"),
        ranks=Ranks(),
    )


def test_products_without_a_title_take_no_part_and_evaluation_products_are_not_trained_on(data: Path) -> None:
    task = task_of(data)
    assert 3 not in {*task.train.tolist(), *task.evaluation.tolist()}
    assert not {*task.train.tolist()} & {*task.evaluation.tolist()}
    assert len(task.train) + len(task.evaluation) == PRODUCTS - 1


def test_micro_batches_have_at_least_two_products(data: Path) -> None:
    task = task_of(data, batch_size=64, accumulation=4)
    sizes = [len(batch.group_B) for batch in task.micro_batches(0, 0)]
    assert sizes == [task.batch_rows // 4] * 4
    with pytest.raises(ValueError, match="too few for 16 micro-batches"):
        task_of(data, batch_size=64, accumulation=16)


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
    task = task_of(data, evaluation_share=0.3)
    task.module.eval()
    with torch.no_grad():
        before = task.evaluate()
    settings = config(epochs=30, learning_rate=5e-3)
    outcome = train(task, tmp_path, config=settings, fingerprint="f")
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


def test_a_tracker_and_tensorboard_hear_of_every_evaluation(data: Path, tmp_path: Path) -> None:
    start = new_encoder(data, size="tiny", inputs=InputConfig(), seed=0)
    tracker = Listening()
    run = warm_up(data, tmp_path / "run", start=start, config=config(), tracker=tracker)
    assert run.outcome is not None
    opened, *logged, closed = tracker.heard
    assert opened[:2] == ("open", tmp_path / "run")
    assert opened[3]["config"]["epochs"] == 2
    assert closed == ("close", "finished")
    history = run.outcome.history
    assert [step for _, _, step in logged] == [entry["step"] for entry in history]
    for (_, values, _), entry in zip(logged, history, strict=True):
        assert values["train/mean_loss"] == entry["train_loss"]
        assert values["evaluation/loss"] == entry["loss"]
    assert set(scalars(tmp_path / "run")["evaluation/loss"]) == {entry["step"] for entry in history}


def test_lookalikes_are_no_negatives_of_each_other(data: Path) -> None:
    task = task_of(data)
    for batch in task.micro_batches(0, 0):
        assert (batch.group_B != NO_GROUP).all()
        groups = torch.from_numpy(task.catalog.group_P)
        assert set(batch.group_B.tolist()) <= set(groups.tolist())


def test_titles_that_one_query_was_made_of_are_no_negatives_of_each_other(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(data)
    monkeypatch.setattr(
        "embeddings.stages.warmup.title_query", lambda title, generator: "milk" if title < "n" else title
    )
    rows = np.arange(8)[task.catalog.group_P[:8] == np.arange(8)]
    batch = task.batch(rows, epoch=0)
    for i, group in enumerate(batch.group_B.tolist()):
        for j, other in enumerate(batch.group_B.tolist()):
            same_query = torch.equal(batch.queries.ids_BT[i], batch.queries.ids_BT[j])
            assert (group == other) == (i == j or same_query)
    asked = {tuple(ids) for ids in batch.queries.ids_BT.tolist()}
    assert len(set(batch.group_B.tolist())) == len(asked)


IMAGELESS, TITLELESS, BROKEN = 5, 6, 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacking = {"without_image": {IMAGELESS}, "without_title": {TITLELESS}}
    data = write_small_catalog(tmp_path_factory.mktemp("image_warmup"), products=PRODUCTS, **lacking)
    broken = ProductCatalog.open(data).image_paths[BROKEN]
    assert broken is not None
    Path(broken).write_bytes(b"not a picture")
    return data


def image_config(**changes: object) -> ImageWarmupConfig:
    return ImageWarmupConfig.model_validate(config().model_dump() | changes)


def image_task_of(
    data: Path, encoder: DashClipEncoder | None = None, *, evaluation_share: float = 0.05, **changes: object
) -> ImageWarmupTask:
    catalog = ProductCatalog.open(data)
    return ImageWarmupTask(
        encoder or small_encoder(),
        catalog,
        config=image_config(**changes),
        parts=product_parts(catalog, evaluation_share),
        device=torch.device("cpu"),
        ranks=Ranks(),
    )


def test_images_need_a_title_and_a_broken_one_is_noted_and_left_out(pictures: Path) -> None:
    task = image_task_of(pictures)
    assert not {IMAGELESS, TITLELESS} & {*task.train.tolist(), *task.evaluation.tolist()}
    batch = task.batch(np.array([BROKEN, 8, 9]), 0)
    assert batch.group_B.tolist() == [NO_GROUP, *task.catalog.group_P[[8, 9]].tolist()]
    assert set(task.unreadable) == {BROKEN}
    losses, without = task.module(batch), task.module(task.batch(np.array([8, 9]), 0))
    for name in ("loss", "contrast", "tokens"):
        torch.testing.assert_close(losses[name], without[name])


def test_too_few_images_are_refused_with_their_number(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=4, without_image={0})
    with pytest.raises(ValueError, match="at least four products with an image and a title, got 3"):
        image_task_of(data)


def test_only_the_image_encoder_and_its_projection_move(pictures: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.product.state_dict().items()}
    train(image_task_of(pictures, encoder), tmp_path, config=image_config(), fingerprint="f")
    moved = {name for name, value in encoder.product.state_dict().items() if not value.equal(before[name])}
    assert {"vision_proj.weight", "vision.embeddings.patch_embedding.0.weight"} <= moved
    assert not [name for name in moved if not name.startswith("vision")]


def test_each_epoch_sees_images_changed_anew_and_the_evaluation_sees_them_unchanged(pictures: Path) -> None:
    task = image_task_of(pictures)
    rows = np.array([8, 9])

    def pixels(epoch: int | None) -> torch.Tensor:
        return task.batch(rows, epoch).products.pixels_BCHW

    assert pixels(0).equal(pixels(0))
    assert not pixels(0).equal(pixels(1))
    plain = image_task_of(pictures, augmentation=None)
    assert pixels(None).equal(plain.batch(rows, 3).products.pixels_BCHW)


def test_training_teaches_images_to_find_their_titles(pictures: Path, tmp_path: Path) -> None:
    task = image_task_of(pictures, evaluation_share=0.3, augmentation=None)
    with torch.no_grad():
        before = task.evaluate()
    config = image_config(epochs=40, learning_rate=5e-3, patience=40, augmentation=None)
    outcome = train(task, tmp_path, config=config, fingerprint="f")
    assert outcome.best["loss"] < before["loss"] - 0.2
    assert outcome.best["image_finds_title"] >= before["image_finds_title"]


def test_rare_tokens_weigh_more_and_what_all_or_no_titles_have_nothing() -> None:
    titles = TokenBatch(
        torch.tensor([[2, 5, 5, 3], [2, 6, 3, 0], [2, 5, 3, 0], [2, 3, 0, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]),
        torch.ones(4, dtype=torch.bool),
    )
    expected = torch.zeros(8)
    expected[5], expected[6] = math.log(4 / 2), math.log(4 / 1)
    torch.testing.assert_close(rarity(titles, 8), expected)


def test_images_learn_to_predict_the_tokens_of_titles_by_a_head_that_is_not_kept(
    pictures: Path, tmp_path: Path
) -> None:
    task = image_task_of(pictures, augmentation=None)
    batch = task.batch(task.train, None)
    with torch.no_grad():
        before = float(task.module(batch)["tokens"])
    weights = set(task.encoder.product.state_dict())
    config = image_config(epochs=40, learning_rate=5e-3, patience=40, augmentation=None)
    train(task, tmp_path, config=config, fingerprint="f")
    with torch.no_grad():
        assert float(task.module(batch)["tokens"]) < before - 0.2
    assert set(task.encoder.product.state_dict()) == weights
    assert set(image_task_of(pictures, token_weight=0.0).module(batch)) == {"loss"}


def test_both_warm_ups_are_runs_that_resume(pictures: Path, tmp_path: Path) -> None:
    start = new_encoder(pictures, size="tiny", inputs=InputConfig(), seed=0)
    text = warm_up(pictures, tmp_path / "text", start=start, config=config())
    image = warm_up(pictures, tmp_path / "image", start=text.encoder, config=image_config())
    assert image.encoder.product.text_proj.weight.equal(text.encoder.product.text_proj.weight)
    assert not image.encoder.product.vision_proj.weight.equal(text.encoder.product.vision_proj.weight)
    assert warm_up(pictures, tmp_path / "image", start=text.encoder, config=image_config()).outcome is None
    with pytest.raises(StageError, match=r"start was \S+, now unsaved-"):
        warm_up(pictures, tmp_path / "image", start=start, config=image_config())
