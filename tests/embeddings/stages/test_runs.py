"""Both stages as runs in a folder: killed, resumed, refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import embeddings.catalog.products
import embeddings.stages.graded_inputs
from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION, HoldoutConfig, product_roles, query_roles
from embeddings.catalog.products import ProductCatalog
from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.build_tuples import TupleSet
from embeddings.relevance.grades import read_grades
from embeddings.stages.alignment import freeze_product_side
from embeddings.stages.product_parts import ProductParts
from embeddings.stages.run_folder import InputConfig, StageError, StageRun
from embeddings.stages.runs import align, new_encoder, pretrain
from embeddings.training.checkpoint import CheckpointError
from embeddings.training.loop import Report
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_config, pretrain_config, small_encoder
from tests.embeddings.training.training_child import INPUTS, TUPLES, run_align, run_pretrain

PRODUCTS, NO_IMAGE = 40, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_catalog(
        tmp_path_factory.mktemp("stages"), products=PRODUCTS, without_image={NO_IMAGE}
    )
    (folder / "images" / "106.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages without an interruption."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    run_pretrain(data, out / "pretrain")
    run_align(data, out / "align")
    return out


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, each ended by SIGKILL."""
    out = tmp_path_factory.mktemp("killed")
    child = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.embeddings.training.training_child",
            "killed",
            str(data),
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout == "[-9, -9]", child.stderr
    return out


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_a_killed_process_resumes_to_the_same_bits(data: Path, whole: Path, killed: Path, stage: str) -> None:
    folder = killed / stage
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert kept == (["step-00000003"] if stage == "pretrain" else ["step-00000001", "step-00000002"])
    steps: list[int] = []
    run = (run_pretrain if stage == "pretrain" else run_align)(
        data, folder, show=lambda report: steps.append(report.step)
    )
    assert steps[0] == (4 if stage == "pretrain" else 3)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        parts = [(root / stage / "encoder" / name).read_bytes() for root in (killed, whole)]
        assert parts[0] == parts[1], name
    assert run.outcome is not None
    expected = record(whole / stage)["outcome"]
    assert run.outcome.history == expected["history"]
    assert run.encoder.encoder_id == DashClipEncoder.load(whole / stage / "encoder").encoder_id
    names = {path.name for path in folder.iterdir()}
    assert names == {"encoder", "tensorboard", "training.json"} | ({"tuples"} if stage == "align" else set())


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return found


def test_a_run_says_what_was_trained_on_what(data: Path, whole: Path) -> None:
    first, second = DashClipEncoder.load(whole / "pretrain" / "encoder"), record(whole / "align")
    assert first.stage == "pretrained"
    assert first.query is None
    counts = record(whole / "pretrain")["counts"]
    assert counts["products_without_image_or_title"] == 1
    assert counts["unreadable_images"] == 1
    held_out = int((product_roles(catalog_ids(data), INPUTS.holdout) == TEST).sum())
    assert counts["training_products"] + counts["evaluation_products"] == PRODUCTS - 1 - held_out
    aligned = DashClipEncoder.load(whole / "align" / "encoder")
    assert (aligned.stage, aligned.query is not None) == ("aligned", True)
    assert aligned.trained_on is not None
    assert aligned.trained_on["counts"] == second["counts"]
    assert second["counts"]["unreadable_images"] == 1
    assert second["outcome"]["steps"] > 0


def completing_encoder() -> DashClipEncoder:
    return small_encoder(fusion="completion")


def test_images_complete_titles_at_the_end_of_stage_2_and_only_if_they_are_looked_at(
    data: Path, tmp_path: Path
) -> None:
    told: dict[str, tuple[int, int]] = {}
    run = run_align(
        data,
        tmp_path / "both",
        start=completing_encoder(),
        progress=lambda what, done, total: told.update({what: (done, total)}),
    )
    assert {what for what, (done, total) in told.items() if done == total} == {
        "tuples",
        "whitening, products",
        "whitening, queries",
        "completion, vectors",
        "completion, tokens",
        "completion, titles",
        "completion, images",
    }
    counts = record(tmp_path / "both")["counts"]
    parts = ProductParts.of(ProductCatalog.open(data), INPUTS.holdout)
    usable_P = ~np.isin(np.arange(PRODUCTS), [NO_IMAGE, 6])
    assert counts["completion_products"] == (parts.train_P & usable_P).sum()
    assert counts["unreadable_images"] == 1
    assert run.encoder.product.completion is not None
    text = replace(INPUTS, modalities=("text",))
    # A completion that the start brings along would not fit what is trained now.
    alone = run_align(data, tmp_path / "text", start=run.encoder, inputs=text)
    assert alone.encoder.product.completion is None
    assert "completion_products" not in record(tmp_path / "text")["counts"]


def test_stage_2_keeps_fewer_dimensions_and_an_encoder_that_did_cannot_go_through_it_again(
    data: Path, tmp_path: Path
) -> None:
    config = align_config(kept_dims=8)
    run = run_align(data, tmp_path / "kept", start=completing_encoder(), config=config)
    assert (run.encoder.config.vector_dim, run.encoder.config.embedding_dim) == (8, 16)
    assert run.encoder.product.completion is not None
    catalog = ProductCatalog.open(data)
    batch = run.encoder.load_batch(catalog, np.arange(4), unreadable={})
    assert run.encoder.embed_products(batch).shape == (4, 8)
    assert run.encoder.embed_queries(["fruit"]).shape == (1, 8)
    with pytest.raises(StageError, match="kept 8 of its 16 dimensions; start from the encoder of stage 1"):
        run_align(data, tmp_path / "again", start=run.encoder, config=config)
    with pytest.raises(StageError, match=r"kept_dims \(20\) must not exceed the 16 dimensions"):
        run_align(data, tmp_path / "wide", start=completing_encoder(), config=align_config(kept_dims=20))


def test_an_interrupted_stage_2_goes_on_when_only_the_completion_changes(data: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(report: Report) -> None:
        if report.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_align(data, tmp_path / "run", start=completing_encoder(), show=stop)
    steps: list[int] = []
    run_align(
        data,
        tmp_path / "run",
        start=completing_encoder(),
        config=align_config(epochs=2, patience=99, completion={"epochs": 3}),
        show=lambda report: steps.append(report.step),
    )
    assert steps[0] > 1


def test_images_in_stage_2_and_completion_exclude_each_other(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage 2 trains on titles alone"):
        run_align(data, tmp_path, start=completing_encoder(), config=align_config(product_side="all"))


def catalog_ids(data: Path) -> Any:
    return pq.read_table(data / "products.parquet").column("product_id").combine_chunks()


def test_stage_2_goes_on_from_the_encoder_of_stage_1(data: Path, whole: Path, tmp_path: Path) -> None:
    first = DashClipEncoder.load(whole / "pretrain" / "encoder")
    before = {name: value.clone() for name, value in first.product.state_dict().items()}
    run = run_align(data, tmp_path / "align", start=first)
    assert run.encoder.trained_on is not None
    assert run.encoder.trained_on["previous"] == first.trained_on
    assert run.encoder.trained_on["settings"]["start"] == first.encoder_id
    assert first.query is None
    for name, value in first.product.state_dict().items():
        assert value.equal(before[name]), "the encoder that a stage starts from stays as it is"
    after = run.encoder.product.state_dict()
    assert all(after[name].equal(before[name]) for name in before if name.startswith("vision"))
    assert not after["product_proj.weight"].equal(before["product_proj.weight"])


def test_no_held_out_query_or_product_is_in_a_training_tuple(data: Path, whole: Path) -> None:
    queries, ids = read_grades(data).queries, catalog_ids(data)
    role_Q, role_P = query_roles(queries, INPUTS.holdout), product_roles(ids, INPUTS.holdout)
    assert {TRAIN, VALIDATION, TEST} <= set(role_Q.tolist())
    assert TEST in role_P
    parts = ProductParts.of(ProductCatalog.open(data), INPUTS.holdout)
    for name, role in (("train", TRAIN), ("validation", VALIDATION)):
        tuples_NC = np.asarray(TupleSet.open(whole / "align" / "tuples" / name).tuples_NC)
        assert set(role_Q[tuples_NC[:, 1:]].ravel().tolist()) == {role}
        assert set(role_P[tuples_NC[:, 0]].tolist()) == {TRAIN}
        assert parts.validation_P[tuples_NC[:, 0]].any() == (role == VALIDATION)


def test_a_query_that_its_encoder_cannot_tell_from_a_held_out_one_is_not_trained_on(tmp_path: Path) -> None:
    """Queries longer than the encoder reads differ in their last word only."""
    folder = write_small_catalog(tmp_path / "data", products=PRODUCTS)
    rows = pq.read_table(folder / "relevance.parquet").to_pylist()
    long = [f"red circle {'red ' * 20}{number}" for number in range(40)]
    roles = query_roles(long, INPUTS.holdout).tolist()
    ends = [long[roles.index(role)] for role in (TRAIN, VALIDATION)]
    rows += [{**row, "query": end} for row in rows if row["query"] == "red circle" for end in ends]
    pq.write_table(pa.Table.from_pylist(rows), folder / "relevance.parquet")
    encoder = run_align(folder, tmp_path / "align").encoder
    seen: dict[str, set[tuple[int, ...]]] = {}
    for name in ("train", "validation"):
        tuples = TupleSet.open(tmp_path / "align" / "tuples" / name)
        ids_QT = encoder.tokenizer(
            tuples.queries.to_pylist(), max_tokens=encoder.config.max_query_tokens
        ).ids_BT
        used = np.unique(tuples.tuples_NC[:, 1:])
        seen[name] = {tuple(ids_T) for ids_T in ids_QT[used].tolist()}
    assert not seen["train"] & seen["validation"]


def test_a_finished_folder_is_opened_and_not_trained_again(data: Path, whole: Path) -> None:
    def never(report: Report) -> None:
        raise AssertionError

    for run in (run_pretrain, run_align):
        stage = "pretrain" if run is run_pretrain else "align"
        found: StageRun = run(data, whole / stage, show=never)
        assert found.outcome is None
        assert found.encoder.encoder_id == DashClipEncoder.load(whole / stage / "encoder").encoder_id


def test_a_finished_folder_of_another_run_is_refused_and_says_what_differs(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    start = small_encoder(dropout=0.1)
    config = pretrain_config(epochs=2, checkpoint_every_steps=3)
    other_data = write_small_catalog(tmp_path / "other", products=PRODUCTS - 1)
    other = {
        "config": {"config": config.model_copy(update={"seed": 9})},
        "start": {"start": small_encoder(seed=3, dropout=0.1)},
        "inputs": {"inputs": replace(INPUTS, holdout=HoldoutConfig(seed=5))},
    }
    for name, change in other.items():
        settings: Any = {"start": start, "config": config, "inputs": INPUTS} | change
        with pytest.raises(
            StageError,
            match=rf"a finished run of other settings \({name}[. ].*was .*, now .*\); delete",
        ):
            pretrain(data, whole / "pretrain", **settings)
    with pytest.raises(StageError, match=r"\(products was [^;]*\); delete it"):
        run_pretrain(other_data, whole / "pretrain")
    with pytest.raises(StageError, match=r"\(products was .*; relevance was .*\); delete it"):
        run_align(other_data, whole / "align")
    with pytest.raises(StageError, match=r"\(sources was .*\); delete it"):
        run_align(data, whole / "align", sources=("llm", "human"))
    with pytest.raises(StageError, match=r"of other settings .config.*stage|of other settings .*more"):
        run_align(data, whole / "pretrain")


class Interrupted(Exception):
    pass


def interrupt(report: Report) -> None:
    raise Interrupted


def test_an_interrupted_run_of_other_settings_is_refused(data: Path, tmp_path: Path) -> None:
    start, config = small_encoder(), pretrain_config()
    folder = tmp_path / "pretrain"
    with pytest.raises(Interrupted):
        pretrain(data, folder, start=start, config=config, inputs=INPUTS, show=interrupt)
    other = config.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(CheckpointError, match="is of a run with other settings or inputs; delete"):
        pretrain(data, folder, start=start, config=other, inputs=INPUTS)


def test_a_folder_that_holds_something_else_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "run" / "encoder" / "photo.jpg"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="encoder"):
        run_pretrain(data, tmp_path / "run", show=interrupt)
    assert foreign.read_bytes() == b"mine"
    (tmp_path / "notes").mkdir()
    for content in ("[1, 2]", "my marathon", "{}"):
        (tmp_path / "notes" / "training.json").write_text(content, encoding="utf-8")
        with pytest.raises(StageError, match=r"training\.json is not the record of a training run"):
            run_pretrain(data, tmp_path / "notes", show=interrupt)


def test_a_catalogue_without_images_is_sent_to_stage_2(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=6, without_image=set(range(6)))
    with pytest.raises(ValueError, match=r"needs at least four products .* start at stage 2"):
        run_pretrain(data, tmp_path / "run")
    assert not (tmp_path / "run" / "encoder").exists()


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """The calls of a function from now on."""
    calls: list[str] = []
    original = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_tables_are_read_and_tuples_drawn_once_although_the_start_comes_later(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 400,000 products and four million grades each takes minutes."""
    built = counted(monkeypatch, embeddings.stages.graded_inputs, "build_tuples")
    read = counted(monkeypatch, embeddings.stages.graded_inputs, "read_grades")
    run = run_align(data, tmp_path / "run", start=small_encoder)
    assert (len(built), len(read)) == (2, 1)  # tuples to train on and to stop by
    alone = run_align(data, tmp_path / "alone", start=small_encoder())
    assert run.encoder.encoder_id == alone.encoder.encoder_id


@pytest.mark.parametrize("graded", [0, 1])
def test_too_few_grades_are_noticed_before_the_start_is_made(tmp_path: Path, graded: int) -> None:
    folder = write_small_catalog(tmp_path / "data", products=PRODUCTS)
    rows = pq.read_table(folder / "relevance.parquet").to_pylist()
    parts = ProductParts.of(ProductCatalog.open(folder), INPUTS.holdout)
    product = catalog_ids(folder)[int(np.flatnonzero(parts.train_P)[0])].as_py()
    grades = read_grades(folder)
    of_train = grades.queries.filter(pa.array(grades.query_roles(INPUTS.holdout) == TRAIN)).to_pylist()
    few = [{**rows[0], "product_id": product, "query": of_train[0], "grade": 2}] * graded
    few += [{**rows[0], "product_id": product, "query": query, "grade": 0} for query in of_train[1:4]]
    pq.write_table(pa.Table.from_pylist(few), folder / "relevance.parquet")

    def never() -> DashClipEncoder:
        raise AssertionError("hours of warm-up")

    with pytest.raises(ValueError, match="no tuple can be made"):
        run_align(folder, tmp_path / "run", start=never)


@pytest.mark.parametrize("run", [run_align, run_pretrain])
def test_a_run_looks_for_lookalikes_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    looked = counted(monkeypatch, embeddings.catalog.products, "groups_of_lookalikes")
    run(data, tmp_path / "run")
    assert len(looked) == 1


def test_titles_alone_are_enough_for_stage_2(data: Path, tmp_path: Path) -> None:
    run = align(
        data,
        tmp_path / "run",
        start=small_encoder(),
        config=align_config(batch_size=64),
        tuple_config=TUPLES,
        inputs=replace(INPUTS, modalities=("text",)),
    )
    assert run.outcome is not None
    assert run.outcome.steps > 0


def test_the_tokenizer_learns_from_no_held_out_text(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def remember(texts: Any, **settings: Any) -> None:
        seen.extend(texts)
        raise InterruptedError

    monkeypatch.setattr(TextTokenizer, "train", remember)
    with pytest.raises(InterruptedError):
        new_encoder(data, size="tiny", inputs=INPUTS, seed=0)
    table = pq.read_table(data / "products.parquet")
    train_P = ProductParts.of(ProductCatalog.open(data), INPUTS.holdout).train_P
    titles = table.column("title").to_pylist()
    queries = read_grades(data).queries
    role_Q = query_roles(queries, INPUTS.holdout)
    expected = [title for title, seen in zip(titles, train_P, strict=True) if seen]
    expected += [query for query, role in zip(queries.to_pylist(), role_Q, strict=True) if role == TRAIN]
    assert seen == expected
    assert len(seen) < len(titles) + len(queries)


def test_a_new_encoder_has_the_vocabulary_of_its_tokenizer_and_takes_another_shape(data: Path) -> None:
    encoder = new_encoder(data, size="tiny", inputs=InputConfig(), seed=0, architecture={"text_layers": 1})
    assert encoder.config.vocab_size == encoder.tokenizer.vocab_size
    assert encoder.config.text_layers == 1
    freeze_product_side(encoder.product, "frozen")
    assert not any(parameter.requires_grad for parameter in encoder.product.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match="device cuda was asked for, but torch sees no CUDA device; use device cpu"
    ):
        run_pretrain(data, tmp_path / "run", device="cuda")
