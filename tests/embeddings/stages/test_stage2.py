"""Stage 2: its batches, losses and what may be a negative."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import embeddings.training.length_chunks
from embeddings.catalog.products import ProductCatalog
from embeddings.relevance.build_tuples import read_grades
from embeddings.stages.alignment import GRADE_START, TEMPERATURE_RANGE, AlignBatch
from embeddings.stages.stage2 import AlignTask, Tuples
from embeddings.training.loop import train, trained_parameters
from embeddings.training.ranks import Ranks
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import (
    NEGATIVES,
    align_config,
    align_task,
    build_small_tuples,
    small_encoder,
)

PRODUCTS, NO_IMAGE, BROKEN = 24, 2, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_catalog(
        tmp_path_factory.mktemp("align"), products=PRODUCTS, without_image={NO_IMAGE}, without_title={3}
    )
    (folder / "images" / f"{100 + BROKEN}.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def tuples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuples:
    return build_small_tuples(data, tmp_path_factory.mktemp("tuples"))


def batches_of(task: AlignTask, epoch: int = 0, first_step: int = 0) -> list[AlignBatch]:
    return list(task.micro_batches(epoch, first_step))


def loop_loss(task: AlignTask, rows: np.ndarray) -> float:
    """Paper equation 1, one tuple at a time, from the public vectors of encoder and queries."""
    catalog, queries = task.catalog, task.tuples.train.queries.to_pylist()
    total = 0.0
    for row in rows:
        product, *asked = task.tuples.train.tuples_NC[row].tolist()
        batch = task.encoder.load_batch(catalog, [product], unreadable={})
        with torch.no_grad():
            vector_D = task.encoder.product(batch)[0]
            query_CD = task.encoder.embed_queries([queries[query] for query in asked])
        cosines = [float(vector_D @ query / vector_D.norm() / query.norm()) for query in query_CD]
        terms = [math.exp(cosine / task.config.temperature) for cosine in cosines]
        total += -math.log(terms[0] / sum(terms))
    return total / len(rows)


def first_rows(task: AlignTask) -> np.ndarray:
    return np.random.default_rng((task.config.seed, 0)).permutation(len(task.tuples.train))[: task.batch_rows]


@pytest.mark.parametrize("settings", [{}, {"product_side": "all"}, {"temperature": 0.2}])
def test_the_loss_is_equation_1_tuple_by_tuple(data: Path, tuples: Tuples, settings: dict[str, Any]) -> None:
    task = align_task(data, tuples, **settings)
    task.module.eval()
    with torch.no_grad():
        loss = float(task.module(batches_of(task)[0])["loss"])
    assert loss == pytest.approx(loop_loss(task, first_rows(task)), rel=1e-4)


def test_image_tokens_kept_in_memory_give_the_same_loss(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = align_task(data, tuples)
    monkeypatch.setattr(embeddings.stages.stage2, "IMAGE_CACHE_BYTES", 0)
    fresh = align_task(data, tuples)
    assert cached.image_cache is not None
    assert fresh.image_cache is None
    for one, other in zip(batches_of(cached)[:3], batches_of(fresh)[:3], strict=True):
        assert one.products.has_image_B.equal(other.products.has_image_B)
        assert one.image_GIH is not None
        assert other.image_GIH is None
        torch.testing.assert_close(cached.module(one)["loss"], fresh.module(other)["loss"], rtol=1e-5, atol=0)
    assert list(cached.unreadable) == list(fresh.unreadable) == [BROKEN]


def test_products_without_images_take_no_room_in_the_cache_and_no_pixels_are_made_for_them(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 400,000 products without an image the tokens would have taken 7 GB, had there been any."""
    monkeypatch.setattr(embeddings.stages.stage2, "IMAGE_CACHE_BYTES", 0)
    catalog = ProductCatalog.open(data, modalities=("text",))
    encoder = small_encoder().with_query_encoder()
    task = AlignTask(
        encoder, catalog, tuples, config=align_config(), device=torch.device("cpu"), ranks=Ranks()
    )
    assert task.image_cache is not None
    assert len(task.image_cache) == 0
    batch = batches_of(task)[0]
    assert not batch.products.has_image_B.any()
    assert batch.products.pixels_BCHW.shape[-1] == 1
    assert float(task.module(batch)["loss"].detach()) > 0


def test_image_tokens_are_not_kept_when_the_image_encoder_is_trained(data: Path, tuples: Tuples) -> None:
    assert align_task(data, tuples, product_side="all").image_cache is None


def gradients(task: AlignTask) -> dict[str, Tensor]:
    task.module.zero_grad()
    for batch in batches_of(task)[: task.config.accumulation]:
        (task.module(batch)["loss"] / task.config.accumulation).backward()
    return {name: p.grad.clone() for name, p in trained_parameters(task.module) if p.grad is not None}


def test_accumulating_twice_gives_the_gradient_of_one_batch(data: Path, tuples: Tuples) -> None:
    """The loss has no terms across rows."""
    encoder = small_encoder().with_query_encoder()
    whole, parts = (
        gradients(align_task(data, tuples, encoder=encoder, accumulation=times)) for times in (1, 2)
    )
    assert whole.keys() == parts.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_in_batch_negatives_are_never_relevant_and_never_of_the_own_tuple(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, in_batch_negatives=True)
    queries, grades = tuples.train.queries.to_pylist(), read_grades(data)
    relevant = {
        (int(product), queries[query])
        for product, query, grade in zip(grades.product_G, grades.query_G, grades.grade_G, strict=True)
        if grade > 0
    }
    known_ids = {
        tuple(ids[mask > 0].tolist()): query
        for query, ids, mask in zip(queries, *task.query_tokens, strict=True)
    }
    free = 0
    for batch in batches_of(task):
        assert batch.relevant_BV is not None
        asked = [
            known_ids[tuple(row[mask > 0].tolist())]
            for ids, masks in batch.query_chunks
            for row, mask in zip(ids, masks, strict=True)
        ]
        for row, product in enumerate(batch.products.index_B[batch.product_B].tolist()):
            own = {asked[place] for place in batch.query_BC[row].tolist()}
            for place, query in enumerate(asked):
                assert bool(batch.relevant_BV[row, place]) == (query in own or (product, query) in relevant)
                free += not batch.relevant_BV[row, place]
    assert free > 0


@pytest.fixture(scope="module")
def respelt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuples]:
    """Every other product is graded for "RED  CIRCLE" where its neighbours are for "red circle"."""
    folder = write_small_catalog(tmp_path_factory.mktemp("respelt"), products=PRODUCTS)
    rows = pq.read_table(folder / "relevance.parquet").to_pylist()
    for row in rows:
        if row["product_id"] % 2:
            row["query"] = row["query"].upper().replace(" ", "  ")
    pq.write_table(pa.Table.from_pylist(rows), folder / "relevance.parquet")
    return folder, build_small_tuples(folder, tmp_path_factory.mktemp("respelt_tuples"))


def folded_grades(data: Path) -> dict[tuple[int, str], int]:
    """Grades by product and query, whatever the spelling."""
    grades = read_grades(data)
    queries = [" ".join(query.lower().split()) for query in grades.queries.to_pylist()]
    pairs = zip(grades.product_G.tolist(), grades.query_G.tolist(), grades.grade_G.tolist(), strict=True)
    return {(product, queries[query]): grade for product, query, grade in pairs}


def test_no_query_is_an_in_batch_negative_under_another_spelling(respelt: tuple[Path, Tuples]) -> None:
    data, tuples = respelt
    task, grade_of = align_task(data, tuples, in_batch_negatives=True), folded_grades(data)
    queries = [" ".join(query.lower().split()) for query in tuples.train.queries.to_pylist()]
    known_ids = {
        tuple(ids[mask > 0].tolist()): query
        for query, ids, mask in zip(queries, *task.query_tokens, strict=True)
    }
    assert len(known_ids) == len(queries) / 2
    free = 0
    for batch in batches_of(task):
        assert batch.relevant_BV is not None
        asked = [
            known_ids[tuple(row[mask > 0].tolist())]
            for ids, masks in batch.query_chunks
            for row, mask in zip(ids, masks, strict=True)
        ]
        for row, product in enumerate(batch.products.index_B[batch.product_B].tolist()):
            own = {asked[place] for place in batch.query_BC[row].tolist()}
            for place, query in enumerate(asked):
                left_out = query in own or grade_of[product, query] > 0
                assert bool(batch.relevant_BV[row, place]) == left_out
                free += not left_out
    assert free > 0


def test_no_product_is_a_negative_of_a_query_that_suits_it_in_another_spelling(
    respelt: tuple[Path, Tuples],
) -> None:
    data, tuples = respelt
    grades, grade_of = read_grades(data), folded_grades(data)
    queries = [" ".join(query.lower().split()) for query in grades.queries.to_pylist()]
    grade_PQ = align_task(data, tuples, product_negatives=8).module.grade_PQ
    assert grade_PQ is not None
    expected = [[grade_of[product, query] for query in queries] for product in range(PRODUCTS)]
    assert grade_PQ.toarray().tolist() == expected


def test_in_batch_negatives_raise_the_loss(data: Path, tuples: Tuples) -> None:
    encoder = small_encoder().with_query_encoder()
    tasks = [align_task(data, tuples, encoder=encoder, in_batch_negatives=flag) for flag in (False, True)]
    plain, more = (float(task.module.eval()(batches_of(task)[0])["loss"].detach()) for task in tasks)
    assert more > plain


@pytest.mark.parametrize("batch_size", [4, 64])
def test_the_evaluation_is_the_loss_of_every_validation_tuple(
    data: Path, tuples: Tuples, batch_size: int
) -> None:
    task = align_task(data, replace(tuples, validation=tuples.train), batch_size=batch_size)
    task.module.eval()
    with torch.no_grad():
        measures = task.evaluate()
    expected = loop_loss(task, np.arange(len(tuples.train)))
    assert measures["loss"] == pytest.approx(expected, rel=1e-4)


def test_equal_vectors_give_the_logarithm_of_the_candidates_and_no_product_its_query(
    data: Path, tuples: Tuples
) -> None:
    task = align_task(data, tuples)
    assert task.encoder.query is not None
    with torch.no_grad():
        task.encoder.query.query_proj.weight.zero_()
        task.encoder.query.query_proj.bias.fill_(1.0)
        measures = task.evaluate()
    assert measures["loss"] == pytest.approx(math.log(1 + NEGATIVES), rel=1e-5)
    assert measures["positive_first"] == 0.0


def test_steps_along_the_gradient_lower_the_loss(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, batch_size=64)
    optimizer = torch.optim.AdamW([parameter for _, parameter in trained_parameters(task.module)], lr=3e-3)
    batch, losses = batches_of(task)[0], []
    for _ in range(14):
        loss = task.module(batch)["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


def test_an_epoch_shows_each_tuple_at_most_once_and_resumes_at_any_step(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, accumulation=2)
    batches = batches_of(task, epoch=1)
    assert sum(len(batch.product_B) for batch in batches) == task.steps_per_epoch * task.batch_rows
    later = batches_of(task, epoch=1, first_step=2)
    assert len(later) == len(batches) - 4
    for got, expected in zip(later, batches[4:], strict=True):
        assert got.products.index_B.equal(expected.products.index_B)
        assert got.query_BC.equal(expected.query_BC)


TEXT, PROJECTION, VISION = "product.text.", "product.product_proj.", "product.vision."


@pytest.mark.parametrize(
    ("side", "parts"),
    [
        ("frozen", ()),
        ("projection", (PROJECTION,)),
        ("grounded", (PROJECTION, TEXT)),
        ("all", (PROJECTION, TEXT, VISION)),
    ],
)
@pytest.mark.parametrize("layers", [0, 1])
def test_freezing_leaves_exactly_the_named_parts(
    data: Path, tuples: Tuples, side: str, parts: tuple[str, ...], layers: int
) -> None:
    task = align_task(data, tuples, product_side=side, frozen_layers=layers)
    still = ("query.text.embeddings.", "query.text.encoder.layer.0.") if layers else ()
    expected = {
        name
        for name, _ in task.module.named_parameters()
        if name.startswith(parts) or (name.startswith("query.") and not (still and name.startswith(still)))
    }
    assert {name for name, _ in trained_parameters(task.module)} == expected


def test_training_moves_what_is_trained_and_nothing_else(data: Path, tuples: Tuples, tmp_path: Path) -> None:
    task = align_task(data, tuples, frozen_layers=1, batch_size=64, learn_temperature=True, weight_decay=0.0)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    train(task, tmp_path, config=task.config, fingerprint="a")
    moved = {name for name, value in task.module.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name, _ in trained_parameters(task.module)}


def test_a_learned_temperature_is_held_in_its_range(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, learn_temperature=True)
    for value, held in ((3.0, TEMPERATURE_RANGE[1]), (0.0, TEMPERATURE_RANGE[0])):
        with torch.no_grad():
            task.module.temperature.fill_(value)
        task.before_step(0)
        assert float(task.module.temperature.detach()) == pytest.approx(held)


def test_each_distinct_query_is_encoded_once_among_queries_of_its_length(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings.training.length_chunks, "CHUNK_ROWS", 2)
    monkeypatch.setattr(embeddings.training.length_chunks, "CHUNK_TOKENS", 1)
    batch = batches_of(align_task(data, tuples))[0]
    assert len(batch.query_chunks) > 1
    rows = [row for ids, mask in batch.query_chunks for row in zip(ids.tolist(), mask.tolist(), strict=True)]
    texts = [tuple(token for token, used in zip(*row, strict=True) if used) for row in rows]
    assert len(set(texts)) == len(texts) == int(batch.query_BC.max()) + 1
    assert [len(text) for text in texts] == sorted(len(text) for text in texts)
    assert all(mask.bool().any(dim=0).all() for _, mask in batch.query_chunks)
    assert len(batch.products.index_B.unique()) == len(batch.products.index_B)


def test_chunks_of_alike_length_change_no_vector(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of products with cached image tokens, nor of those whose images are read each time."""
    for side in ("grounded", "all"):
        task = align_task(data, tuples, product_side=side)
        whole = batches_of(task)[0]
        assert len(whole.product_chunks) == 1
        with monkeypatch.context() as patch:
            patch.setattr(embeddings.training.length_chunks, "CHUNK_ROWS", 2)
            patch.setattr(embeddings.training.length_chunks, "CHUNK_TOKENS", 1)
            parted = batches_of(task)[0]
        assert len(parted.product_chunks) > 1
        assert torch.equal(parted.products.index_B, whole.products.index_B)
        with torch.no_grad():
            for one, other in zip(task.module.vectors(whole), task.module.vectors(parted), strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_bfloat16_evaluates_nearly_the_same(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples)
    with torch.no_grad():
        exact = task.evaluate()["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = task.evaluate()["loss"]
    assert rounded == pytest.approx(exact, rel=0.03)


def test_queries_made_of_titles_add_a_weighted_loss(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, title_query_weight=0.5)
    losses = task.module.eval()(batches_of(task)[0])
    assert float(losses["title_queries"]) > 0
    torch.testing.assert_close(losses["loss"], losses["pqc"] + 0.5 * losses["title_queries"])
    assert all(batch.title_queries is None for batch in batches_of(align_task(data, tuples)))


def test_a_query_made_of_two_titles_leaves_both_products_out_of_its_negatives(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("embeddings.stages.stage2.title_query", lambda title, generator: "one query for all")
    monkeypatch.setattr(
        "embeddings.stages.alignment.pqc_loss",
        lambda product, positive, *_, in_batch=None, **__: seen.append(in_batch) or positive.sum() * 0,
    )
    task = align_task(data, tuples, title_query_weight=0.5)
    task.module.eval()(batches_of(task)[0])
    made_of_titles = seen[-2:]  # each product picks its query, each query its product
    for chosen in made_of_titles:
        batch_products = len(chosen.relevant_BQ)
        assert batch_products > 1
        assert chosen.relevant_BQ[:, :batch_products].all()


def test_what_cannot_be_aligned_is_refused(data: Path, tuples: Tuples, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a query encoder; call with_query_encoder\(\) first"):
        align_task(data, tuples, encoder=small_encoder())
    no_tuples = replace(tuples.train, tuples_NC=tuples.train.tuples_NC[:1])
    with pytest.raises(ValueError, match=r"needs at least two training tuples .* got 1 and "):
        align_task(data, replace(tuples, train=no_tuples))
    other = build_small_tuples(write_small_catalog(tmp_path / "other", products=12), tmp_path / "tuples")
    with pytest.raises(ValueError, match="must come from the same relevance data"):
        align_task(data, replace(tuples, validation=other.validation))
    encoder = small_encoder().with_query_encoder()
    config = align_task(data, tuples).config.model_copy(update={"in_batch_negatives": True})
    with pytest.raises(ValueError, match=r"in_batch_negatives .*the grades"):
        AlignTask(
            encoder,
            ProductCatalog.open(data),
            tuples,
            config=config,
            device=torch.device("cpu"),
            ranks=embeddings.stages.stage2.Ranks(),
        )


def test_the_module_is_made_of_the_encoders_of_the_task(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples)
    parts: tuple[nn.Module, nn.Module] = (task.module.product, task.module.query)
    assert parts == (task.encoder.product, task.encoder.query)


def test_a_query_never_picks_against_lookalikes_or_products_of_at_least_its_grade(
    data: Path, tuples: Tuples, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = align_task(data, tuples, product_negatives=64)
    grades = read_grades(data)
    grade_of = {
        (int(product), int(query)): int(grade)
        for product, query, grade in zip(grades.product_G, grades.query_G, grades.grade_G, strict=True)
    }
    seen: list[tuple[Any, np.ndarray]] = []
    pick = task.module._pick

    def noted(
        candidates: Any, query_BD: Tensor, own_B: Tensor, excluded_BC: np.ndarray, **more: Any
    ) -> Tensor:
        seen.append((candidates, excluded_BC))
        return pick(candidates, query_BD, own_B, excluded_BC, **more)

    monkeypatch.setattr(task.module, "_pick", noted)
    task.module.train()
    negatives = 0
    for batch in batches_of(task):
        task.module(batch)
        candidates, excluded_BC = seen.pop()
        own = candidates.product_C[batch.product_B.numpy()]
        for row, (product, query, grade) in enumerate(
            zip(own.tolist(), batch.positive_B.tolist(), batch.grade_B.tolist(), strict=True)
        ):
            for place, other in enumerate(candidates.product_C.tolist()):
                alike = other >= 0 and task.catalog.group_P[other] == task.catalog.group_P[product]
                expected = other < 0 or alike or grade_of.get((other, query), 0) >= grade
                assert excluded_BC[row, place] == expected, (product, query, other)
                negatives += not expected
    assert negatives
    assert len(task.module.remembered) > task.batch_rows  # the last batches are candidates of the next


def test_a_remembered_product_is_a_negative_and_takes_no_gradient(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, product_negatives=64)
    first, second, *_ = batches_of(task)
    task.module.train()
    alone = float(task.module(second)["products"].detach())
    task.module.remembered.group_Q.fill_(-1)
    task.module(first)
    together = task.module(second)
    assert float(together["products"].detach()) > alone
    assert not task.module.remembered.image_QD.requires_grad


def test_picking_products_equals_a_loop(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, product_negatives=8, title_query_weight=0.0)
    batch = batches_of(task)[0]
    task.module.train()
    with torch.no_grad():
        product_UD, query_VD = task.module.vectors(batch)
        found = float(task.module(batch)["products"])
    grade_PQ = task.module.grade_PQ
    assert grade_PQ is not None
    losses = []
    places = batch.products.index_B.tolist()
    for row, own in enumerate(batch.product_B.tolist()):
        query_D, query = query_VD[batch.query_BC[row, 0]], int(batch.positive_B[row])
        terms = {}
        for place, product in enumerate(places):
            alike = task.catalog.group_P[product] == task.catalog.group_P[places[own]]
            if place == own or not (alike or grade_PQ[product, query] >= batch.grade_B[row]):
                terms[place] = math.exp(float(query_D @ product_UD[place]) / task.config.temperature)
        losses.append(-math.log(terms[own] / sum(terms.values())))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def graded_loop(task: AlignTask, pairs: list[tuple[int, int, int]]) -> float:
    """Binary cross-entropy, one graded pair at a time, from the public vectors of encoder and queries."""
    queries, total = task.tuples.train.queries.to_pylist(), 0.0
    for product, query, grade in pairs:
        with torch.no_grad():
            product_D = task.encoder.product(task.encoder.load_batch(task.catalog, [product], unreadable={}))[
                0
            ]
            query_D = task.encoder.embed_queries([queries[query]])[0]
        cosine = float(product_D @ query_D / product_D.norm() / query_D.norm())
        says = 1 / (1 + math.exp(-(GRADE_START[0] * cosine + GRADE_START[1])))
        total -= grade / 2 * math.log(says) + (1 - grade / 2) * math.log(1 - says)
    return total / len(pairs)


def graded_pairs(task: AlignTask, batch: AlignBatch) -> list[tuple[int, int, int]]:
    """Product, query and grade of the graded pairs of a batch."""
    known_ids = {
        tuple(ids[mask > 0].tolist()): number
        for number, (ids, mask) in enumerate(zip(*task.query_tokens, strict=True))
    }
    asked = [
        known_ids[tuple(row[mask > 0].tolist())]
        for ids, masks in batch.query_chunks
        for row, mask in zip(ids, masks, strict=True)
    ]
    assert batch.graded is not None
    products = batch.products.index_B[batch.graded.product_B].tolist()
    queries = [asked[place] for place in batch.graded.query_B.tolist()]
    return list(zip(products, queries, batch.graded.grade_B.tolist(), strict=True))


def test_graded_pairs_add_a_weighted_loss_pair_by_pair(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, graded_pairs_weight=3.0)
    batch = batches_of(task)[0]
    losses = task.module.eval()(batch)
    pairs = graded_pairs(task, batch)
    assert len(pairs) == task.batch_rows
    assert float(losses["graded"]) == pytest.approx(graded_loop(task, pairs), rel=1e-4)
    torch.testing.assert_close(losses["loss"], losses["pqc"] + 3.0 * losses["graded"])
    assert float(losses["pqc"]) == pytest.approx(loop_loss(task, first_rows(task)), rel=1e-4)


def test_graded_pairs_are_those_that_people_graded_and_that_may_be_trained_on(
    data: Path, tuples: Tuples
) -> None:
    grades = read_grades(data)
    columns = (grades.product_G.tolist(), grades.query_G.tolist(), grades.grade_G.tolist())
    known = list(zip(*columns, strict=True))
    trained_G = np.arange(len(known)) % 3 == 0
    task = align_task(data, tuples, graded_pairs_weight=1.0, trained_G=trained_G)
    seen = [pair for batch in batches_of(task) for pair in graded_pairs(task, batch)]
    allowed = {pair for pair, trained in zip(known, trained_G, strict=True) if trained}
    assert set(seen) <= allowed
    assert len(set(seen)) == min(len(allowed), len(seen))  # one pass before any comes twice
    assert {grade for *_, grade in seen} == {0, 1, 2}


def test_gradients_of_graded_pairs_are_the_same_in_parts(data: Path, tuples: Tuples) -> None:
    encoder = small_encoder().with_query_encoder()
    whole, parts = (
        gradients(align_task(data, tuples, encoder=encoder, accumulation=times, graded_pairs_weight=2.0))
        for times in (1, 2)
    )
    assert "grade_moves_2" in whole
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_graded_pairs_without_a_pair_to_train_on_are_refused(data: Path, tuples: Tuples) -> None:
    nothing = np.zeros(len(read_grades(data)), bool)
    with pytest.raises(ValueError, match="no graded pair is of a query and a product to train on"):
        align_task(data, tuples, graded_pairs_weight=1.0, trained_G=nothing)
    with pytest.raises(ValueError, match="which of them are to train on"):
        AlignTask(
            small_encoder().with_query_encoder(),
            ProductCatalog.open(data),
            tuples,
            config=align_config(graded_pairs_weight=1.0),
            grades=read_grades(data),
            device=torch.device("cpu"),
            ranks=embeddings.stages.stage2.Ranks(),
        )
