"""Whitening: variances and cosines after the map, its folding into a projection, what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.completion import Completion
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages import whitening
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.whitening import SMALLEST_VARIANCE, Whitening, fold, whiten, whitening_map
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import batch_of, small_encoder

PRODUCTS = 24
QUERIES = ["orange juice", "oat milk", "milk", "dark chocolate", "juice", "chocolate milk", "oat"]


def centred_rows(seed: int, *, rows: int = 60, dim: int = 5) -> Tensor:
    """Correlated columns of very different variances with mean zero."""
    generator = torch.Generator().manual_seed(seed)
    mix_DD = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    scale_D = torch.logspace(0, -1.5, dim, dtype=torch.float64)
    rows_ND = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * scale_D @ mix_DD
    return rows_ND - rows_ND.mean(dim=0)


@given(seed=st.integers(0, 1000), power=st.floats(0, 1))
def test_variances_are_raised_to_one_minus_power_and_sorted(seed: int, power: float) -> None:
    rows_ND = centred_rows(seed)
    # A second way: singular values of the rows themselves.
    variance_D = np.linalg.svd(rows_ND.numpy(), compute_uv=False) ** 2 / len(rows_ND)
    changed_D = variance_D / (variance_D + SMALLEST_VARIANCE * variance_D[0]) ** power
    expected_D = changed_D * variance_D.sum() / changed_D.sum()
    map_DD, before, after = whitening_map(rows_ND, power=power)
    mapped_ND = (rows_ND @ map_DD.T).numpy()
    covariance_DD = mapped_ND.T @ mapped_ND / len(mapped_ND)
    np.testing.assert_allclose(covariance_DD, np.diag(expected_D), atol=1e-9 * variance_D[0])
    assert before == pytest.approx(variance_D.sum() ** 2 / (variance_D**2).sum())
    assert after == pytest.approx(expected_D.sum() ** 2 / (expected_D**2).sum())


def test_power_zero_keeps_every_product_of_two_rows() -> None:
    rows_ND = centred_rows(0)
    mapped_ND = rows_ND @ whitening_map(rows_ND, power=0.0)[0].T
    torch.testing.assert_close(mapped_ND @ mapped_ND.T, rows_ND @ rows_ND.T)


def test_the_total_variance_is_kept_at_every_scale() -> None:
    rows_ND = centred_rows(0)
    # Scaled so that the variances to the power 1/2 sum to one.
    variance_D = torch.linalg.eigvalsh(rows_ND.T @ rows_ND / len(rows_ND)).clamp_min(0)
    changed = (variance_D / (variance_D + SMALLEST_VARIANCE * variance_D.max()) ** 0.5).sum()
    for scale in (1e-3, float(1 / changed), 1.0, 1e3):
        mapped_ND = scale * rows_ND @ whitening_map(scale * rows_ND, power=0.5)[0].T
        assert float((mapped_ND**2).sum() / (rows_ND**2).sum()) == pytest.approx(scale**2)


def test_rows_without_variance_map_to_zeros() -> None:
    map_DD, before, after = whitening_map(torch.zeros(7, 4), power=0.5)
    assert map_DD.isfinite().all()
    assert (before, after) == (0.0, 0.0)


def test_a_folded_projection_gives_the_mapped_output() -> None:
    projection = nn.Linear(3, 4)
    state_NH, shift_D = torch.randn(6, 3), torch.randn(4, dtype=torch.float64)
    map_DD = torch.randn(4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected_ND = (projection(state_NH) - shift_D.float()) @ map_DD.float().T
        fold(projection, map_DD, shift_D)
        torch.testing.assert_close(projection(state_NH), expected_ND)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ProductCatalog:
    folder: Path = tmp_path_factory.mktemp("whitening")
    lacking = {"without_title": {1, 3}, "without_image": {2, 3}}
    return ProductCatalog.open(write_small_catalog(folder, products=PRODUCTS, **lacking))


def whitened(
    catalog: ProductCatalog, *, power: float = 0.5, seed: int = 0
) -> tuple[DashClipEncoder, Whitening]:
    encoder = small_encoder().with_query_encoder()
    found = whiten(encoder, catalog, product_N=np.arange(PRODUCTS), queries=QUERIES, power=power, seed=seed)
    return encoder, found


def mean_length(vectors_ND: Tensor) -> float:
    return float(vectors_ND[vectors_ND.norm(dim=1) > 0].mean(dim=0).norm())


def test_means_come_near_the_origin_and_dimensions_are_used(catalog: ProductCatalog) -> None:
    before, (after, found) = small_encoder().with_query_encoder(), whitened(catalog)
    batch = batch_of(before, catalog, list(range(PRODUCTS)))
    for old_ND, new_ND, reported in (
        (before.embed_products(batch), after.embed_products(batch), found.product_mean_length),
        (before.embed_queries(QUERIES), after.embed_queries(QUERIES), found.query_mean_length),
    ):
        assert mean_length(old_ND) == pytest.approx(reported, abs=1e-5)
        assert reported > 0.5, "vectors that start centred would show nothing"
        assert mean_length(new_ND) < 0.4 * reported
    assert found.effective_dims_after > 1.3 * found.effective_dims_before


def test_nothing_but_the_two_projections_changes(catalog: ProductCatalog) -> None:
    before, (after, _) = small_encoder().with_query_encoder(), whitened(catalog)
    assert before.query is not None
    assert after.query is not None
    changed = {
        name
        for old, new in ((before.product, after.product), (before.query, after.query))
        for name, value in old.state_dict().items()
        if not value.equal(new.state_dict()[name])
    }
    assert changed == {f"{side}_proj.{part}" for side in ("product", "query") for part in ("weight", "bias")}


def test_kept_dimensions_are_the_first_ones_back_at_unit_length(
    catalog: ProductCatalog, tmp_path: Path
) -> None:
    wide, _ = whitened(catalog)
    narrow = small_encoder().with_query_encoder()
    whiten(narrow, catalog, product_N=np.arange(PRODUCTS), queries=QUERIES, power=0.5, kept=8, seed=0)
    assert (narrow.config.vector_dim, narrow.config.embedding_dim) == (8, wide.config.embedding_dim)
    narrow.product.completion = Completion(8, narrow.config.vocab_size, image_dim=narrow.config.embedding_dim)
    saved = narrow.save(tmp_path / "encoder", stage="aligned", trained_on={})
    batch = batch_of(wide, catalog, list(range(PRODUCTS)))
    wide.product.completion = None
    for found_NK, wide_ND in (
        (saved.embed_queries(QUERIES), wide.embed_queries(QUERIES)),
        (saved.embed_products(batch), wide.embed_products(batch)),
    ):
        torch.testing.assert_close(found_NK, nn.functional.normalize(wide_ND[:, :8], dim=1))


def test_no_more_dimensions_are_kept_than_there_are(catalog: ProductCatalog) -> None:
    with pytest.raises(ValueError, match=r"kept_dims \(64\) must not exceed embedding_dim"):
        whiten(
            small_encoder().with_query_encoder(),
            catalog,
            product_N=np.arange(4),
            queries=QUERIES,
            power=0.5,
            kept=64,
            seed=0,
        )
    with pytest.raises(ValueError, match="set whitening = true"):
        AlignConfig(epochs=1, batch_size=8, learning_rate=0.1, kept_dims=8, whitening=False)


def test_of_many_rows_a_sample_is_taken(catalog: ProductCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whitened(catalog)[1]
    monkeypatch.setattr(whitening, "WHITENING_ROWS", 5)
    one, same, other = whitened(catalog)[1], whitened(catalog)[1], whitened(catalog, seed=1)[1]
    assert one == same
    assert len({whole, one, other}) == 3


def test_it_needs_a_query_encoder_and_something_to_average(catalog: ProductCatalog) -> None:
    settings = {"queries": QUERIES, "power": 0.5, "seed": 0}
    with pytest.raises(ValueError, match="has no query encoder"):
        whiten(small_encoder(), catalog, product_N=np.arange(4), **settings)
    neither = np.array([3])
    with pytest.raises(ValueError, match="at least one product with an image or a title"):
        whiten(small_encoder().with_query_encoder(), catalog, product_N=neither, **settings)
    with pytest.raises(ValueError, match="and a known query"):
        whiten(
            small_encoder().with_query_encoder(),
            catalog,
            product_N=np.arange(4),
            **settings | {"queries": ["☃"]},
        )


def test_dropout_has_no_part_in_whitening(catalog: ProductCatalog) -> None:
    found = []
    for training in (False, True):
        encoder = small_encoder(dropout=0.5).with_query_encoder()
        assert encoder.query is not None
        encoder.product.train(training)
        encoder.query.train(training)
        found.append(whiten(encoder, catalog, product_N=np.arange(8), queries=QUERIES, power=0.5, seed=0))
    assert found[0] == found[1]
