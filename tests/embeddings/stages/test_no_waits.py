"""No step of a stage waits for the device that it trains on; losses that are read later change no bit."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embeddings.catalog.products import ProductCatalog
from embeddings.stages.alignment import HostGroups
from embeddings.stages.stage1 import has_other_group
from embeddings.stages.stage2 import Tuples
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask, TextWarmupTask, WarmupConfig
from embeddings.training.base_loop import TrainingDivergedError
from embeddings.training.feature_queue import FeatureQueue
from embeddings.training.loop import OptimizerConfig, TrainingOutcome, _EncoderLoop, train
from embeddings.training.losses import NO_GROUP, draw_negatives, hard_negative_probabilities
from embeddings.training.ranks import Ranks
from embeddings.training.run_log import TrainingLog
from embeddings.training.step_numbers import NumbersOnTheWay
from tests.device_waits import DeviceWaits
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import (
    align_task,
    build_small_tuples,
    pretrain_task,
    product_parts,
    small_encoder,
)

CPU = torch.device("cpu")
PRODUCTS = 24
WARMUP = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Product 3 has no title, 5 and 6 no image, the picture of 9 cannot be read."""
    folder = tmp_path_factory.mktemp("waits") / "data"
    data = write_small_catalog(folder, products=PRODUCTS, without_title={3}, without_image={5, 6})
    (data / "images" / "109.png").write_bytes(b"no picture")
    return data


@pytest.fixture(scope="module")
def tuples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuples:
    return build_small_tuples(data, tmp_path_factory.mktemp("tuples"))


def text_warmup(data: Path, _tuples: Tuples) -> TextWarmupTask:
    catalog = ProductCatalog.open(data)
    config = WarmupConfig.model_validate(WARMUP)
    parts = product_parts(catalog)
    return TextWarmupTask(small_encoder(), catalog, config=config, parts=parts, device=CPU, ranks=Ranks())


def image_warmup(data: Path, _tuples: Tuples) -> ImageWarmupTask:
    catalog = ProductCatalog.open(data)
    config = ImageWarmupConfig.model_validate(WARMUP)
    parts = product_parts(catalog)
    return ImageWarmupTask(small_encoder(), catalog, config=config, parts=parts, device=CPU, ranks=Ranks())


TASKS: dict[str, Callable[[Path, Tuples], Any]] = {
    "text warm-up": text_warmup,
    "image warm-up": image_warmup,
    "stage 1": lambda data, _: pretrain_task(data),
    "stage 1, two micro-batches": lambda data, _: pretrain_task(data, accumulation=2),
    "stage 1, n-grams": lambda data, _: pretrain_task(data, encoder=small_encoder(ngram_buckets=64)),
    "stage 2": align_task,
    "stage 2, images": lambda data, tuples: align_task(data, tuples, product_side="all"),
    "stage 2, all losses": lambda data, tuples: align_task(
        data,
        tuples,
        in_batch_negatives=True,
        product_negatives=8,
        title_query_weight=0.5,
        graded_pairs_weight=0.5,
        learn_temperature=True,
    ),
}


class AsOnGpu(_EncoderLoop):
    """The loop with what it does for a GPU: losses are read some steps later."""

    every = 3

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.on_the_way = NumbersOnTheWay(CPU, every=self.every)


def task_config(task: Any) -> dict[str, Any]:
    accumulation = getattr(task, "accumulation", None) or task.config.accumulation
    rows = task.batch_rows
    return {"epochs": 2, "batch_size": rows, "learning_rate": 1e-3, "accumulation": accumulation}


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders do what they do where asking would wait."""
    for module in ("modules", "ngrams"):
        monkeypatch.setattr(f"embeddings.encoders.{module}.asking_waits", lambda _tensor: True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.usefixtures("as_on_gpu")
def test_no_step_waits_for_the_device(
    name: str, precision: str, data: Path, tuples: Tuples, tmp_path: Path
) -> None:
    task = TASKS[name](data, tuples)
    config = OptimizerConfig.model_validate({**task_config(task), "precision": precision})
    loop = AsOnGpu(task, tmp_path, config, "f", Ranks(), None, TrainingLog(tmp_path, writes=False))
    loop.on_the_way = NumbersOnTheWay(CPU, every=20)
    loop._one_step(task.micro_batches(0, 0))  # the first asks once what the queue holds
    batches = task.micro_batches(1, 0)
    ready = list(islice(batches, 2 * config.accumulation))
    batches.close()
    with DeviceWaits() as waits:
        for _ in range(2):
            loop._one_step(iter(ready))  # type: ignore[arg-type]
    assert waits.calls == []


@pytest.mark.parametrize("ngram_buckets", [0, 64])
def test_encoders_that_ask_nothing_give_the_same_vectors(
    data: Path, monkeypatch: pytest.MonkeyPatch, ngram_buckets: int
) -> None:
    encoder = small_encoder(ngram_buckets=ngram_buckets, ngram_dim=8).with_query_encoder()
    batch = encoder.load_batch(ProductCatalog.open(data), np.arange(PRODUCTS), unreadable={})
    queries = ["red soap", "", "a towel"]
    asked = encoder.embed_products(batch), encoder.embed_queries(queries)
    for module in ("modules", "ngrams"):
        monkeypatch.setattr(f"embeddings.encoders.{module}.asking_waits", lambda _tensor: True)
    with DeviceWaits() as waits:
        products = encoder.embed_products(batch)
    assert waits.calls == []
    for one, other in zip(asked, (products, encoder.embed_queries(queries)), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["stage 1, two micro-batches", "stage 2, all losses"])
def test_losses_that_are_read_later_change_no_bit(
    name: str, data: Path, tuples: Tuples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: str) -> tuple[TrainingOutcome, dict[str, torch.Tensor]]:
        task = TASKS[name](data, tuples)
        config = OptimizerConfig.model_validate({**task_config(task), "checkpoint_every_steps": 2})
        outcome = train(task, tmp_path / folder, config=config, fingerprint="f")
        return outcome, task.module.state_dict()

    plain, weights = trained("plain")
    monkeypatch.setattr("embeddings.training.loop._EncoderLoop", AsOnGpu)
    later, others = trained("later")
    assert later.history == plain.history
    assert all(others[name].equal(value) for name, value in weights.items())


def test_a_loss_that_is_no_number_is_found_before_a_checkpoint_and_its_own_step_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embeddings.training.loop._EncoderLoop", AsOnGpu)
    task = pretrain_task(data)
    steps, before = [], task.before_step

    def before_step(step: int) -> None:
        steps.append(step)
        before(step)
        if step == 1:
            next(task.module.online.parameters()).data.fill_(float("nan"))

    task.before_step = before_step  # type: ignore[method-assign]
    task.steps_per_epoch = 100  # no evaluation comes in between
    whole = task.micro_batches(0, 0)
    batch = next(whole)
    whole.close()
    task.micro_batches = lambda _epoch, _step: (batch for _ in range(100))  # type: ignore[method-assign]
    settings = {**task_config(task), "epochs": 1, "checkpoint_every_steps": 100}
    config = OptimizerConfig.model_validate(settings)
    with pytest.raises(TrainingDivergedError, match=r"the loss of step 2 is nan"):
        train(task, tmp_path, config=config, fingerprint="f")
    assert 2 < len(steps) <= 2 + 2 * AsOnGpu.every, "some steps later"


@given(
    st.lists(st.lists(st.sampled_from([NO_GROUP, 0, 1, 2, 3]), max_size=9), max_size=6),
    st.integers(0, 7),
)
def test_a_queue_passes_over_rows_without_group_and_its_groups_on_the_host_stay_the_same(
    batches: list[list[int]], size: int
) -> None:
    queue = FeatureQueue(size, 1)
    host = HostGroups.of(queue)
    expected_Q, values_Q = np.full(size, NO_GROUP), np.zeros(size)
    slot = number = 0
    for groups in batches:
        group_B = torch.tensor(groups, dtype=torch.int64)
        value_B1 = number + torch.arange(len(groups), dtype=torch.float32).unsqueeze(1)
        number += len(groups)
        queue.push(value_B1, -value_B1, group_B)
        host.push(group_B.numpy())
        pairs = zip(groups, value_B1[:, 0].tolist(), strict=True)
        known = [pair for pair in pairs if pair[0] != NO_GROUP]
        for group, value in known[-size:] if size else []:
            expected_Q[slot], values_Q[slot] = group, value
            slot = (slot + 1) % size
    assert queue.group_Q.tolist() == host.group_Q.tolist() == expected_Q.tolist()
    assert queue.image_QD[:, 0].tolist() == values_Q.tolist()
    assert queue.text_QD[:, 0].tolist() == (-values_Q).tolist()
    assert int(queue.next_slot) == host.next_slot == slot


@given(st.lists(st.sampled_from([NO_GROUP, 0, 1, 2]), min_size=1, max_size=6), st.integers(0, 99))
def test_the_host_knows_which_rows_a_negative_is_drawn_for(groups: list[int], seed: int) -> None:
    group_B = torch.tensor(groups)
    logits_BB = torch.randn(len(groups), len(groups), generator=torch.Generator().manual_seed(seed)) * 30
    shares_BB = hard_negative_probabilities(logits_BB, group_B=group_B, group_C=group_B)
    drawn_B = draw_negatives(shares_BB, torch.Generator().manual_seed(seed))
    assert (drawn_B >= 0).tolist() == has_other_group(group_B.numpy()).tolist()
