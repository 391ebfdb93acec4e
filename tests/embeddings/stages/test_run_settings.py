"""What a stage is told reaches what it trains: sources, modalities, whitening; its start stays as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.run_folder import StageError, StageRun
from embeddings.stages.runs import align, pretrain, warm_up
from embeddings.stages.warmup import ImageWarmupConfig, WarmupConfig
from embeddings.training.loop import Report
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_config, pretrain_config, small_encoder
from tests.embeddings.training.training_child import INPUTS, TUPLES

PRODUCTS = 32
WARMUP: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_small_catalog(tmp_path_factory.mktemp("settings"), products=PRODUCTS)


def short_align(
    data: Path, folder: Path, *, start: DashClipEncoder | None = None, config: Any = None, **settings: Any
) -> StageRun:
    common = {"tuple_config": TUPLES, "inputs": INPUTS}
    return align(
        data,
        folder,
        start=start or small_encoder(),
        config=align_config(batch_size=64, **(config or {})),
        **{**common, **settings},
    )


def weights(encoder: DashClipEncoder) -> dict[str, torch.Tensor]:
    parts = {"product": encoder.product} | ({"query": encoder.query} if encoder.query else {})
    return {
        f"{name}.{key}": value.clone()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }


def differing(one: DashClipEncoder | dict[str, torch.Tensor], other: DashClipEncoder) -> set[str]:
    first, second = one if isinstance(one, dict) else weights(one), weights(other)
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not value.equal(second[name])}


Stage = Callable[[Path, Path, DashClipEncoder], StageRun]
STAGES: dict[str, Stage] = {
    "text warm-up": lambda data, folder, start: warm_up(
        data, folder, start=start, config=WarmupConfig(**WARMUP), inputs=INPUTS
    ),
    "image warm-up": lambda data, folder, start: warm_up(
        data, folder, start=start, config=ImageWarmupConfig(**WARMUP), inputs=INPUTS
    ),
    "stage 1": lambda data, folder, start: pretrain(
        data, folder, start=start, config=pretrain_config(epochs=1), inputs=INPUTS
    ),
    "stage 2": lambda data, folder, start: short_align(data, folder, start=start),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_start_of_a_stage_stays_as_it_is_and_products_start_where_its_titles_end(
    data: Path, tmp_path: Path, name: str
) -> None:
    start = small_encoder().with_query_encoder() if name == "stage 2" else small_encoder()
    before = weights(start)
    run = STAGES[name](data, tmp_path, start)
    assert differing(before, start) == set()
    assert differing(before, run.encoder)
    if name != "stage 2":
        product = run.encoder.product
        assert product.product_proj.weight.equal(product.text_proj.weight)
        assert product.product_proj.bias.equal(product.text_proj.bias)


def test_grades_of_other_sources_have_no_part(data: Path, tmp_path: Path) -> None:
    grades = pq.read_table(data / "relevance.parquet")
    opposite = pa.array([2 - grade for grade in grades["grade"].to_pylist()], pa.int8())
    model = grades.set_column(2, "grade", opposite).set_column(3, "source", pa.array(["llm"] * len(grades)))
    both = write_small_catalog(tmp_path / "both", products=PRODUCTS)
    pq.write_table(pa.concat_tables([grades, model]), both / "relevance.parquet")
    human = short_align(data, tmp_path / "human", sources=("human",)).encoder
    same = short_align(both, tmp_path / "same", sources=("human",)).encoder
    other = short_align(both, tmp_path / "other", sources=("llm",)).encoder
    assert differing(human, same) == set()
    assert differing(human, other)


def test_whitening_goes_by_its_power_and_is_left_out_when_it_is_not_wanted(
    data: Path, tmp_path: Path
) -> None:
    plain = short_align(data, tmp_path / "plain", config={"whitening": False}).encoder
    assert plain.trained_on is not None
    assert "product_mean_length" not in plain.trained_on["counts"]
    dims = {}
    for power in (0.0, 1.0):
        encoder = short_align(data, tmp_path / str(power), config={"whitening_power": power}).encoder
        assert encoder.trained_on is not None
        counts = encoder.trained_on["counts"]
        dims[power] = counts["effective_dims_before"], counts["effective_dims_after"]
        changed = {f"{side}_proj.{part}" for side in ("product", "query") for part in ("weight", "bias")}
        assert differing(plain, encoder) == {f"{name.split('_')[0]}.{name}" for name in changed}
    assert dims[0.0][0] == dims[1.0][0] == pytest.approx(dims[0.0][1], rel=1e-6)
    assert dims[1.0][1] > 1.5 * dims[1.0][0]


def test_queries_are_made_of_titles_that_products_do_not_show(data: Path, tmp_path: Path) -> None:
    """An encoder of images alone still learns from the words of titles, if it is asked to."""
    losses: list[float] = []

    def show(report: Report) -> None:
        losses.append(report.losses["title_queries"])

    config = {"title_query_weight": 1.0}
    short_align(data, tmp_path, config=config, inputs=replace(INPUTS, modalities=("image",)), show=show)
    assert losses
    assert min(losses) > 0


def test_a_stage_refuses_an_encoder_that_was_trained_on_these_products_with_another_hold_out(
    data: Path, tmp_path: Path
) -> None:
    start = STAGES["text warm-up"](data, tmp_path / "warmup", small_encoder()).encoder
    other = replace(INPUTS, holdout=INPUTS.holdout.model_copy(update={"seed": 5}))
    config = pretrain_config(epochs=1)
    with pytest.raises(StageError, match=r"hold out the same of it, .* had another \[holdout\]"):
        pretrain(data, tmp_path / "stage 1", start=start, config=config, inputs=other)
    elsewhere = write_small_catalog(tmp_path / "elsewhere", products=PRODUCTS + 8)
    pretrain(elsewhere, tmp_path / "another", start=start, config=config, inputs=other)  # unseen, all of it
