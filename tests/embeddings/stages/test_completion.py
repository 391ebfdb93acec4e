"""Completion: what it may change, what it learns, how it is saved; equal seeds give equal weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.completion import COMPONENTS, Completion
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages import completion_training as module
from embeddings.stages.completion_training import Completed, CompletionConfig, complete
from embeddings.stages.product_parts import ProductParts
from embeddings.stages.warmup import ImageWarmupConfig, ImageWarmupTask
from embeddings.training.loop import train
from embeddings.training.losses import unit_vectors
from embeddings.training.ranks import Ranks
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import batch_of, product_parts, small_encoder

PRODUCTS = 48
NO_TITLE, NO_IMAGE, NEITHER = 1, 2, 3
CONFIG = CompletionConfig(epochs=40, draws=4)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ProductCatalog:
    folder: Path = tmp_path_factory.mktemp("completion")
    lacking = {"without_title": {NO_TITLE, NEITHER}, "without_image": {NO_IMAGE, NEITHER}}
    return ProductCatalog.open(write_small_catalog(folder, products=PRODUCTS, **lacking))


def aligned_encoder() -> DashClipEncoder:
    """With a query encoder, and with weights that are no product of training."""
    return small_encoder(fusion="completion").with_query_encoder()


@pytest.fixture(scope="module")
def seeing(catalog: ProductCatalog, tmp_path_factory: pytest.TempPathFactory) -> DashClipEncoder:
    """An encoder whose image side has learned colours and shapes."""
    encoder = aligned_encoder()
    config = ImageWarmupConfig(epochs=60, batch_size=16, learning_rate=5e-3, patience=60, augmentation=None)
    task = ImageWarmupTask(
        encoder,
        catalog,
        config=config,
        parts=product_parts(catalog, 0.05),
        device=torch.device("cpu"),
        ranks=Ranks(),
    )
    train(task, tmp_path_factory.mktemp("warmup"), config=config, fingerprint="f")
    return encoder


def completed(
    encoder: DashClipEncoder,
    catalog: ProductCatalog,
    *,
    seed: int = 0,
    products: int = PRODUCTS,
    evaluation_share: float = 0.05,
) -> Completed:
    first_P = np.arange(len(catalog)) < products
    parts = ProductParts(*(part_P & first_P for part_P in product_parts(catalog, evaluation_share)))
    return complete(
        encoder,
        catalog,
        whole_titles=catalog.titles,
        parts=parts,
        config=CONFIG,
        seed=seed,
    )


def test_untrained_it_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    product_BD, image_BD = (unit_vectors(torch.randn(5, 8, generator=generator)) for _ in range(2))
    torch.testing.assert_close(Completion(8, 30, image_dim=8).eval()(product_BD, image_BD), product_BD)


def test_it_learns_what_images_say_of_products_it_has_not_seen(
    seeing: DashClipEncoder, catalog: ProductCatalog
) -> None:
    found = completed(seeing, catalog, evaluation_share=0.3)
    assert found.completion_products == (PRODUCTS - 3) - round(0.3 * (PRODUCTS - 3))
    assert found.cosine_after > found.cosine_before
    batch = batch_of(seeing, catalog, list(range(4, PRODUCTS)))
    untitled = replace(batch, has_title_B=torch.zeros(PRODUCTS - 4, dtype=torch.bool))
    whole_BD, alone_BD = seeing.embed_products(batch), seeing.embed_products(untitled)
    # An image alone is nearer to its own product than to others of another colour and shape.
    similarity_BB = alone_BD @ whole_BD.T
    own_B = similarity_BB.diagonal()
    assert float((own_B - similarity_BB.mean(dim=1)).mean()) > 0.02


def test_only_products_with_an_image_change_and_vectors_stay_unit(
    seeing: DashClipEncoder, catalog: ProductCatalog
) -> None:
    batch = batch_of(seeing, catalog, [0, NO_TITLE, NO_IMAGE, NEITHER])
    seeing.product.completion = None
    before_BD = seeing.embed_products(batch)
    assert not before_BD[[1, 3]].any(), "nothing reads an image before the completion"
    weights = {name: value.clone() for name, value in seeing.product.state_dict().items()}
    completed(seeing, catalog)
    after_BD = seeing.embed_products(batch)
    assert after_BD[2:].equal(before_BD[2:])
    assert not (after_BD[:2] - before_BD[:2]).abs().amax(dim=1).lt(1e-3).any()
    torch.testing.assert_close(after_BD[:2].norm(dim=1), torch.ones(2))
    after = seeing.product.state_dict()
    assert all(value.equal(after[name]) for name, value in weights.items())
    assert {name.split(".")[0] for name in after.keys() - weights.keys()} == {"completion"}


def test_equal_seeds_give_equal_weights_and_the_callers_random_state_stays(catalog: ProductCatalog) -> None:
    state = torch.get_rng_state()
    one, same, other = (aligned_encoder() for _ in range(3))
    assert completed(one, catalog) == completed(same, catalog) != completed(other, catalog, seed=1)
    assert torch.get_rng_state().equal(state)
    vectors = [
        encoder.embed_products(batch_of(encoder, catalog, [0, 5, 9])) for encoder in (one, same, other)
    ]
    assert vectors[0].equal(vectors[1])
    assert not vectors[0].equal(vectors[2])


def test_it_is_saved_with_the_encoder_and_absent_without(catalog: ProductCatalog, tmp_path: Path) -> None:
    encoder = aligned_encoder()
    batch = batch_of(encoder, catalog, [0, 5, NO_TITLE, NO_IMAGE])
    assert encoder.save(tmp_path / "plain", stage="aligned", trained_on={}).product.completion is None
    completed(encoder, catalog)
    loaded = encoder.save(tmp_path / "completed", stage="aligned", trained_on={})
    assert loaded.embed_products(batch).equal(encoder.embed_products(batch))


def test_components_are_the_principal_axes_of_the_roots_of_probabilities(
    seeing: DashClipEncoder, catalog: ProductCatalog
) -> None:
    completed(seeing, catalog)
    completion = seeing.product.completion
    assert completion is not None
    generator = torch.Generator().manual_seed(0)
    image_ND = unit_vectors(torch.randn(60, seeing.config.embedding_dim, generator=generator))
    found_NK = module._set_components(completion, image_ND, torch.arange(60))
    assert found_NK.shape == (60, COMPONENTS)
    root_NV = completion.token_logits(image_ND).softmax(dim=1).sqrt().numpy().astype(np.float64)
    centred_NV = root_NV - root_NV.mean(axis=0)
    length_K = np.linalg.svd(centred_NV, compute_uv=False)
    rank = min(centred_NV.shape)
    scaled_K = length_K * module.COMPONENT_DEVIATION / (length_K[:rank].mean() / 60**0.5)
    np.testing.assert_allclose(
        np.linalg.norm(found_NK.numpy(), axis=0)[:rank], scaled_K[:rank], atol=1e-3 * scaled_K[0]
    )
    # Scaled rotations keep angles between centred rows.
    gram_NN = centred_NV @ centred_NV.T
    scale = (scaled_K[0] / length_K[0]) ** 2
    np.testing.assert_allclose(
        (found_NK @ found_NK.T).numpy(), scale * gram_NN, atol=2e-3 * np.abs(scale * gram_NN).max()
    )


def test_images_that_all_predict_the_same_add_no_component(
    seeing: DashClipEncoder, catalog: ProductCatalog
) -> None:
    completed(seeing, catalog)
    completion = seeing.product.completion
    assert completion is not None
    same_ND = unit_vectors(torch.ones(40, seeing.config.embedding_dim))
    module._set_components(completion, same_ND, torch.arange(40))
    other_ND = unit_vectors(torch.eye(seeing.config.embedding_dim))
    assert not completion.foretold(other_ND).any()


def test_few_products_with_image_and_title_teach_nothing_and_broken_images_are_counted(
    catalog: ProductCatalog, tmp_path: Path
) -> None:
    encoder = aligned_encoder()
    lacking_P = np.isin(np.arange(PRODUCTS), [NO_TITLE, NO_IMAGE, NEITHER])
    parts = ProductParts(lacking_P, ~lacking_P)
    found = complete(encoder, catalog, parts=parts, whole_titles=catalog.titles, config=CONFIG, seed=0)
    assert found == Completed(0, 0)
    assert encoder.product.completion is None
    broken = ProductCatalog.open(write_small_catalog(tmp_path / "broken", products=24))
    train = np.flatnonzero(product_parts(broken, 0.05).train_P).tolist()
    path = broken.image_paths[train[7]]
    assert path is not None
    path.write_bytes(b"no picture")
    found = completed(encoder, broken, products=24)
    assert (found.unreadable_images, found.completion_products) == (1, len(train) - 1)


def test_a_completion_that_brings_titles_no_nearer_adds_nothing_beside_them(
    catalog: ProductCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = aligned_encoder()
    batch = batch_of(encoder, catalog, [0, 5, NO_TITLE])
    before_BD = encoder.embed_products(batch)
    values = iter([torch.tensor([0.9]), torch.tensor([0.8])])
    real = module.cosine_similarity
    monkeypatch.setattr(
        module, "cosine_similarity", lambda a, b: real(a, b) if torch.is_grad_enabled() else next(values)
    )
    found = completed(encoder, catalog)
    assert (found.cosine_before, found.cosine_after) == (pytest.approx(0.9), pytest.approx(0.8))
    after_BD = encoder.embed_products(batch)
    torch.testing.assert_close(after_BD[:2], before_BD[:2])
    assert after_BD[2].any(), "what has nothing but an image still reads it"


def test_other_fusions_leave_nothing_to_complete(catalog: ProductCatalog) -> None:
    with pytest.raises(ValueError, match="only the fusion completion is completed, not grounded"):
        completed(small_encoder(fusion="grounded"), catalog)


def test_of_many_products_a_sample_is_taken(catalog: ProductCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPLETION_ROWS", 30)
    assert completed(aligned_encoder(), catalog).completion_products == 30
