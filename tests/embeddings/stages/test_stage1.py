"""Stage 1: its batches, losses, teacher and evaluation."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embeddings.catalog.products import ProductCatalog
from embeddings.stages.stage1 import SHADOWED, TEMPERATURE_RANGE, PretrainBatch, PretrainTask, advice
from embeddings.training.evaluation import evaluation_chunks
from embeddings.training.loop import TrainingOutcome, train, trained_parameters
from embeddings.training.losses import NO_GROUP, constant_matching_loss
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import pretrain_config, pretrain_task, small_encoder
from tests.tolerances import float32_error

PRODUCTS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("pretrain"), products=PRODUCTS)


def first_batch(task: PretrainTask, epoch: int = 0) -> PretrainBatch:
    batches = task.micro_batches(epoch, 0)
    batch: PretrainBatch = next(batches)
    batches.close()
    return batch


def test_steps_along_the_gradient_lower_the_contrastive_loss(data: Path) -> None:
    task = pretrain_task(
        data, batch_size=20, evaluation_share=0.05, queue_size=0, soft_target_share=0.0, augmentation=None
    )
    optimizer = torch.optim.AdamW([parameter for _, parameter in trained_parameters(task.module)], lr=3e-3)
    batch, losses = first_batch(task), []
    for _ in range(16):
        loss = task.module(batch)["itc"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[1] - 0.2


def test_training_and_evaluation_products_have_no_group_in_common(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=48)  # the second 24 differ by "Series 1"
    catalog = ProductCatalog.open(data)
    shutil.copy(data / "images" / "100.png", data / "images" / "130.png")
    for share in (0.05, 0.1, 0.2, 0.4, 0.6):
        task = pretrain_task(data, evaluation_share=share)
        groups = [set(catalog.group_P[part].tolist()) for part in (task.train, task.evaluation)]
        assert groups[0].isdisjoint(groups[1])
        assert len(groups[1]) >= 2
        assert sorted([*task.train, *task.evaluation]) == list(range(48))


def test_products_without_image_or_readable_title_are_left_out_and_counted(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=PRODUCTS, without_title={3}, without_image={5, 6})
    task = pretrain_task(data)
    assert task.left_out == 3
    assert {3, 5, 6}.isdisjoint([*task.train, *task.evaluation])
    assert len(task.train) + len(task.evaluation) == PRODUCTS - 3


def test_a_catalogue_without_images_names_what_to_do(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=6, without_image=set(range(6)))
    with pytest.raises(
        ValueError, match=r"at least four products with an image and a title, got 0 of 6; .* start at stage 2"
    ):
        pretrain_task(data)


def test_too_many_micro_batches_for_the_catalogue_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"training rows are too few for 16 micro-batches"):
        pretrain_task(data, batch_size=64, accumulation=16)
    with pytest.raises(ValidationError, match="a micro-batch of one product has no negatives"):
        pretrain_config(batch_size=4, accumulation=4)


def test_an_unreadable_image_is_noted_and_takes_no_part(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=PRODUCTS)
    whole = pretrain_task(data, batch_size=16, accumulation=1, augmentation=None, queue_size=0)
    batch = first_batch(whole)
    broken = int(batch.products.index_B[0])
    (data / "images" / f"{100 + broken}.png").write_bytes(b"no picture")
    task = pretrain_task(data, batch_size=16, accumulation=1, augmentation=None, queue_size=0)
    got = first_batch(task)
    assert list(task.unreadable) == [broken]
    assert got.group_B[0] == NO_GROUP
    assert got.products.index_B.equal(batch.products.index_B)
    rest = PretrainBatch(
        batch.products.take(slice(1, None)), batch.group_B[1:], batch.draw, batch.host_group_B[1:]
    )
    for module in (whole.module, task.module):
        module.eval()
    # Only the order of random numbers differs, so matching is compared by its pairs, contrast by its value.
    torch.testing.assert_close(task.module(got)["itc"], whole.module(rest)["itc"])
    assert task.module.measure(got)[[2, 3, 5]].tolist() == [15, 2 * 15, 15]
    assert float(task.module(got)["loss"]) > 0


def test_an_evaluation_without_a_readable_image_names_what_to_check(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path, products=PRODUCTS)
    task = pretrain_task(data)
    for index in task.evaluation:
        (data / "images" / f"{100 + index}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the .* evaluation products of stage 1 has an image"):
        task.evaluate()
    assert set(task.unreadable) == set(task.evaluation.tolist())


def test_an_evaluation_says_the_same_twice_and_the_loss_of_a_constant_is_known(data: Path) -> None:
    task = pretrain_task(data)
    task.module.eval()
    with torch.no_grad():
        assert task.evaluate() == task.evaluate()
        task.encoder.product.itm_head.weight.zero_()
        task.encoder.product.itm_head.bias.copy_(torch.tensor([2.0, 1.0]).log())
        measures = task.evaluate()
    assert measures["loss"] == measures["matching_loss"] == pytest.approx(0.6365, abs=1e-4)
    pairs = 3 * len(task.evaluation)
    tolerance = float32_error(2 + pairs, size=math.log(3))  # a softmax of two, then the mean
    assert measures["loss"] == pytest.approx(constant_matching_loss(1, 2), abs=tolerance)
    assert measures["matching_accuracy"] == pytest.approx(2 / 3)


def test_the_early_stop_can_go_by_the_contrastive_loss_of_products_kept_aside(data: Path) -> None:
    task = pretrain_task(data, early_stop="contrastive", evaluation_share=0.5, batch_size=8)
    task.module.eval()
    with torch.no_grad():
        measures = task.evaluate()
        total = 0.0
        for index in evaluation_chunks(task.evaluation):
            batch = task._batch(index, augmentation=None, seed=0, draw=0)
            product = task.encoder.product
            image_BD = product.image_features(product.image_tokens(batch.products.pixels_BCHW))
            ids_BT, mask_BT = batch.products.ids_BT, batch.products.mask_BT
            text_BD = product.text_features(product.text_tokens(ids_BT, mask_BT), mask_BT)
            logits_BB = (image_BD @ text_BD.T / task.config.temperature).double()
            for row, group in enumerate(batch.group_B.tolist()):
                same = [other for other, its in enumerate(batch.group_B.tolist()) if its == group]
                for side_B in (logits_BB[row], logits_BB[:, row]):  # without the loss under test
                    chosen = [float(side_B[other] - side_B.logsumexp(0)) for other in same]
                    total -= sum(chosen) / len(chosen) / 2
    assert measures["contrastive_loss"] == pytest.approx(total / len(task.evaluation), rel=1e-5)
    assert measures["loss"] == measures["contrastive_loss"] != measures["matching_loss"]


def test_weights_picked_by_a_matching_loss_that_learned_nothing_are_told() -> None:
    def ended(loss: float) -> TrainingOutcome:
        best = {"loss": loss, "matching_loss": loss, "matching_loss_at_chance": constant_matching_loss(1, 2)}
        return TrainingOutcome(
            8, 4, best, [], stopped_early=False, rows_per_second=1.0, rows_per_cpu_second=1.0
        )

    assert advice(ended(0.6), pretrain_config()) is None
    assert advice(ended(0.64), pretrain_config(early_stop="contrastive")) is None
    said = advice(ended(0.64), pretrain_config())
    assert said is not None
    for words in ("step 4", "matching loss that has learned nothing", 'early_stop = "contrastive"'):
        assert words in said


def test_a_record_without_early_stop_is_that_of_the_default() -> None:
    """So that runs from before it go on."""
    assert "early_stop" not in pretrain_config().model_dump(mode="json")
    assert pretrain_config(early_stop="contrastive").model_dump()["early_stop"] == "contrastive"


def test_an_image_finds_its_title_when_both_say_which_product_it_is(data: Path) -> None:
    """A batch whose images are all the same cannot find more than one title."""
    task = pretrain_task(data, evaluation_share=0.9)
    assert len(task.evaluation) >= 20
    index = task.evaluation[:8]
    batch = task._batch(index, augmentation=None, seed=0, draw=0)
    same = replace(batch.products, pixels_BCHW=batch.products.pixels_BCHW[:1].expand(8, -1, -1, -1))
    with torch.no_grad():
        *_, known, found, _, _ = task.module.eval().measure(batch._replace(products=same)).tolist()
    assert (known, found) == (8, 1)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_epoch_shows_each_product_at_most_once_and_resumes_at_any_step(
    data: Path, accumulation: int
) -> None:
    task = pretrain_task(data, batch_size=8, accumulation=accumulation)
    batches = list(task.micro_batches(1, 0))
    seen = torch.cat([batch.products.index_B for batch in batches])
    assert len(seen.unique()) == len(seen) == task.steps_per_epoch * task.batch_rows
    assert set(seen.tolist()) <= set(task.train.tolist())
    later = list(task.micro_batches(1, 1))
    for got, expected in zip(later, batches[accumulation:], strict=True):
        assert got.products.index_B.equal(expected.products.index_B)
        assert got.products.pixels_BCHW.equal(expected.products.pixels_BCHW)
        assert got.draw == expected.draw
    assert len({batch.draw for batch in [*batches, *task.micro_batches(2, 0)]}) == 2 * len(batches)


def test_a_batch_never_exceeds_what_there_is(tmp_path: Path) -> None:
    task = pretrain_task(write_small_catalog(tmp_path, products=9), batch_size=64, accumulation=2)
    assert (task.batch_rows % 2, task.steps_per_epoch) == (0, 1)
    assert len(list(task.micro_batches(0, 0))) == 2


def test_freezing_leaves_the_named_parts_and_the_product_projection_alone(data: Path) -> None:
    task = pretrain_task(data, frozen_layers=1)
    trained = {name for name, _ in trained_parameters(task.module)}
    expected = {
        name
        for name, _ in task.module.named_parameters()
        if name == "temperature"
        or name.startswith(
            (
                "online.vision.encoder.layers.1.",
                "online.vision.post_layernorm",
                "online.text.encoder.layer.1.",
                "online.vision_proj",
                "online.text_proj",
                "online.itm_head",
            )
        )
    }
    assert trained == expected


def test_training_moves_what_is_trained_and_nothing_else(data: Path, tmp_path: Path) -> None:
    task = pretrain_task(data, epochs=1, frozen_layers=1, weight_decay=0.0)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    train(task, tmp_path, config=task.config, fingerprint="a")
    trained = {name for name, _ in trained_parameters(task.module)}
    for name, value in task.module.state_dict().items():
        if name.startswith("online") and name not in trained:
            assert value.equal(before[name]), name
    moved = {name for name in trained if not task.module.state_dict()[name].equal(before[name])}
    assert moved == trained


def test_the_teacher_follows_slowly_and_takes_no_gradient(data: Path) -> None:
    task = pretrain_task(data, embedding_momentum=0.9)
    online, teacher = task.encoder.product, task.module.teacher
    for name in SHADOWED:
        for own, followed in zip(teacher[name].parameters(), getattr(online, name).parameters(), strict=True):
            assert own.equal(followed)
            assert not own.requires_grad
    with torch.no_grad():
        online.text_proj.weight += 1.0
    start = teacher["text_proj"].weight.clone()
    task.before_step(0)
    torch.testing.assert_close(teacher["text_proj"].weight, start + 0.1)


def test_the_teachers_share_of_the_targets_rises_over_the_first_epoch(data: Path) -> None:
    task = pretrain_task(data, soft_target_share=0.4, soft_target_epochs=1.0)
    shares = []
    for step in range(2 * task.steps_per_epoch):
        task.before_step(step)
        shares.append(task.module.soft_share)
    assert shares[: task.steps_per_epoch] == pytest.approx(
        [0.4 * step / task.steps_per_epoch for step in range(task.steps_per_epoch)]
    )
    assert set(shares[task.steps_per_epoch :]) == {0.4}


@pytest.mark.parametrize(("value", "held"), [(9.0, TEMPERATURE_RANGE[1]), (-1.0, TEMPERATURE_RANGE[0])])
def test_the_temperature_is_held_in_its_range(data: Path, value: float, held: float) -> None:
    task = pretrain_task(data)
    with torch.no_grad():
        task.module.temperature.fill_(value)
    task.before_step(0)
    assert float(task.module.temperature.detach()) == pytest.approx(held)


def test_the_queue_takes_in_what_is_trained_on_and_not_what_is_measured(data: Path) -> None:
    task = pretrain_task(data, queue_size=1000)
    assert len(task.module.queue.group_Q) == len(task.train)
    batch = first_batch(task)
    task.module.eval()(batch)
    assert len(task.module.queue) == 0
    task.module.train()(batch)
    assert task.module.queue.group_Q[:8].equal(batch.group_B)


def test_unmatched_pairs_are_of_other_groups_and_two_for_each_product(data: Path) -> None:
    """A head that looks at which image and title it is given says which pairs were made."""
    task = pretrain_task(data, batch_size=16, augmentation=None)
    batch = first_batch(task)
    batch = batch._replace(group_B=torch.arange(len(batch.group_B)) // 4)
    pairs: list[tuple[Any, Any]] = []
    rows = {tuple(ids): row for row, ids in enumerate(batch.products.ids_BT.tolist())}
    image_BIH = task.encoder.product.image_tokens(batch.products.pixels_BCHW)

    def look(ids_NT: torch.Tensor, mask_NT: torch.Tensor, image_NIH: torch.Tensor) -> torch.Tensor:
        image_N = torch.cdist(image_NIH.flatten(1), image_BIH.flatten(1)).argmin(dim=1)
        pairs.extend(
            (rows[tuple(ids)], image) for ids, image in zip(ids_NT.tolist(), image_N.tolist(), strict=True)
        )
        return torch.zeros(len(ids_NT), 2)

    task.encoder.product.match_logits = look  # type: ignore[method-assign]
    with torch.no_grad():
        task.module.measure(batch)
    assert pairs[:16] == [(row, row) for row in range(16)]
    assert [title for title, _ in pairs[16:32]] == list(range(16))
    assert [image for _, image in pairs[32:]] == list(range(16))
    assert all(title // 4 != image // 4 for title, image in pairs[16:])
    # Another encoder is measured by the same pairs; training draws the pairs that are hard for it.
    drawn = pairs.copy()
    for same, measured in ((True, task.module.measure), (False, task.module)):
        pairs.clear()
        with torch.no_grad():
            task.encoder.product.vision_proj.weight.mul_(-9.0)
            measured(batch)
        assert (pairs == drawn) == same


def test_a_batch_of_one_group_gives_no_unmatched_pair(data: Path) -> None:
    task = pretrain_task(data)
    batch = first_batch(task)
    losses = task.module(batch._replace(group_B=torch.zeros_like(batch.group_B)))
    assert all(value.isfinite() for value in losses.values())
    losses["loss"].backward()


def test_bfloat16_gives_nearly_the_same_losses(data: Path) -> None:
    task = pretrain_task(data, augmentation=None)
    batch = first_batch(task)
    task.module.eval()
    with torch.no_grad():
        exact = task.module(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = task.module(batch)
    assert rounded["loss"].dtype == torch.float32
    assert float(rounded["itc"]) == pytest.approx(float(exact["itc"]), rel=0.05)


def test_augmentation_differs_by_epoch_and_not_by_batch(data: Path) -> None:
    task = pretrain_task(data)
    one, other = (
        {
            int(i): p
            for b in task.micro_batches(epoch, 0)
            for i, p in zip(b.products.index_B, b.products.pixels_BCHW, strict=True)
        }
        for epoch in (0, 1)
    )
    both = sorted(one.keys() & other.keys())
    assert not any(one[index].equal(other[index]) for index in both)
    index = both[:3]
    alone = task._batch(np.array(index), augmentation=task.config.augmentation, seed=0, draw=0)
    assert all(alone.products.pixels_BCHW[row].equal(one[product]) for row, product in enumerate(index))


def test_the_encoder_of_the_task_is_the_one_that_is_trained(data: Path) -> None:
    encoder = small_encoder()
    task = pretrain_task(data, encoder=encoder)
    assert task.module.online is encoder.product


def test_a_text_encoder_that_is_not_trained_keeps_all_but_its_cross_attention(
    data: Path, tmp_path: Path
) -> None:
    task = pretrain_task(data, train_text=False)
    text = {f"text.{name}" for name, _ in task.encoder.product.text.named_parameters()}
    before = {name: value.clone() for name, value in task.encoder.product.state_dict().items()}
    train(task, tmp_path, config=task.config, fingerprint="f")
    after = task.encoder.product.state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved & text == {name for name in text if "crossattention" in name}
    assert "text_proj.weight" not in moved
    assert {"vision_proj.weight", "itm_head.weight"} <= moved
