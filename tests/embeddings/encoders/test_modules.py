"""Products with and without image or title, padding, freezing."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize, pad

from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.encoders.completion import Completion
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import (
    ConvStem,
    ProductEncoder,
    QueryEncoder,
    freeze_first_layers,
    pooled,
    pooled_image,
    seeded,
)
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import batch_of, small_encoder

BOTH, NO_TITLE, NO_IMAGE, NEITHER = 0, 1, 2, 3


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ProductCatalog:
    folder: Path = tmp_path_factory.mktemp("encoders")
    lacking = {"without_title": {NO_TITLE, NEITHER}, "without_image": {NO_IMAGE, NEITHER}}
    return ProductCatalog.open(write_small_catalog(folder, products=8, **lacking))


@pytest.fixture(scope="module")
def encoder() -> DashClipEncoder:
    encoder = small_encoder(fusion="grounded")
    encoder.product.eval()
    return encoder


@pytest.fixture(scope="module")
def batch(encoder: DashClipEncoder, catalog: ProductCatalog) -> ProductBatch:
    return batch_of(encoder, catalog, list(range(8)))


@torch.no_grad()
def test_each_product_is_a_unit_vector_and_one_without_image_and_title_is_zero(
    encoder: DashClipEncoder, batch: ProductBatch
) -> None:
    length_B = encoder.product(batch).norm(dim=1)
    expected_B = torch.tensor([float(index != NEITHER) for index in range(8)])
    torch.testing.assert_close(length_B, expected_B)


@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(encoder: DashClipEncoder, catalog: ProductCatalog) -> None:
    together_BD = encoder.product(batch_of(encoder, catalog, list(range(8))))
    for index in range(8):
        alone_1D = encoder.product(batch_of(encoder, catalog, [index]))
        torch.testing.assert_close(alone_1D[0], together_BD[index], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(encoder: DashClipEncoder, batch: ProductBatch) -> None:
    wider = replace(batch, ids_BT=pad(batch.ids_BT, (0, 5)), mask_BT=pad(batch.mask_BT, (0, 5)))
    torch.testing.assert_close(encoder.product(wider), encoder.product(batch), atol=1e-5, rtol=0)
    query = encoder.with_query_encoder().query
    assert query is not None
    query.eval()
    torch.testing.assert_close(
        query(wider.ids_BT, wider.mask_BT), query(batch.ids_BT, batch.mask_BT), atol=1e-5, rtol=0
    )


def test_pooling_takes_the_first_token_or_the_mean_of_those_that_count() -> None:
    state_BTH = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    for row, tokens in enumerate((4, 2, 1)):
        by_hand_H = sum(state_BTH[row, token] for token in range(tokens)) / tokens
        torch.testing.assert_close(pooled(state_BTH, mask_BT, "mean")[row], by_hand_H)
    assert pooled(state_BTH, mask_BT, "cls").equal(state_BTH[:, 0])


def test_pooling_of_images_takes_the_first_token_the_mean_or_all_side_by_side() -> None:
    state_BIH = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert pooled_image(state_BIH, "cls").equal(state_BIH[:, 0])
    torch.testing.assert_close(pooled_image(state_BIH, "mean"), sum(state_BIH[:, i] for i in range(4)) / 4)
    flat_BH = pooled_image(state_BIH, "flat")
    for image, token in itertools.product(range(3), range(4)):
        assert flat_BH[image, 5 * token : 5 * token + 5].equal(state_BIH[image, token])


@pytest.mark.parametrize("pooling", ["cls", "mean", "flat"])
@torch.no_grad()
def test_every_pooling_of_images_gives_unit_vectors_of_the_shared_space(
    catalog: ProductCatalog, pooling: str
) -> None:
    encoder = small_encoder(image_pooling=pooling)
    batch = batch_of(encoder, catalog, [4, NO_IMAGE, NO_TITLE])
    image_BIH = encoder.product.eval().image_tokens(batch.pixels_BCHW)
    assert image_BIH.shape[1] == encoder.config.num_image_tokens
    assert pooled_image(image_BIH, encoder.config.image_pooling).shape[1] == encoder.config.image_state_dim
    torch.testing.assert_close(encoder.product.image_features(image_BIH).norm(dim=1), torch.ones(3))


def test_published_geometry_sees_and_pools_as_blip_was_trained() -> None:
    base, *scratch = (EncoderConfig.preset(size) for size in ("base", "tiny", "small"))
    assert (base.pooling, base.image_pooling, base.image_stem) == ("cls", "cls", "linear")
    assert base.fusion == "grounded"
    shapes = {(config.pooling, config.image_pooling, config.image_stem) for config in scratch}
    assert shapes == {("mean", "flat", "conv")}


@torch.no_grad()
def test_the_product_projection_starts_where_titles_are(catalog: ProductCatalog) -> None:
    product = small_encoder(fusion="grounded").product.eval()
    batch = batch_of(small_encoder(), catalog, [4, NO_IMAGE, NO_TITLE])
    product.start_product_proj()
    image_BIH = product.image_tokens(batch.pixels_BCHW)
    grounded_BTH = product.grounded_tokens(batch.ids_BT, batch.mask_BT, image_BIH)
    ids_BT = batch.ids_BT.clone()
    ids_BT[:, 0] = product.enc_id
    alone_BTH = product.text_tokens(ids_BT, batch.mask_BT)
    state_BTH = torch.stack([grounded_BTH[0], alone_BTH[1], grounded_BTH[2]])
    expected_BD = product.text_proj(pooled(state_BTH, batch.mask_BT, "mean"))
    torch.testing.assert_close(product.projected(batch), expected_BD)
    torch.testing.assert_close(product(batch), normalize(expected_BD, dim=-1))


@pytest.mark.parametrize(("patch_size", "hidden_dim"), [(4, 8), (8, 32), (16, 128)])
@torch.no_grad()
def test_a_stem_of_convolutions_gives_one_token_a_patch_whatever_the_batch(
    patch_size: int, hidden_dim: int
) -> None:
    stem = seeded(lambda: ConvStem(patch_size, hidden_dim), 0)
    pixels_BCHW = torch.randn(3, 3, 2 * patch_size, 3 * patch_size)
    tokens_BHRC = stem(pixels_BCHW)
    assert tokens_BHRC.shape == (3, hidden_dim, 2, 3)
    torch.testing.assert_close(stem(pixels_BCHW[1:2]), tokens_BHRC[1:2])


def test_a_stem_of_convolutions_needs_patches_that_can_be_halved() -> None:
    with pytest.raises(ValidationError, match=r"patch_size must be 4, 8, 16 \.\.\. pixels, got 24"):
        EncoderConfig.preset("small", patch_size=24)


@torch.no_grad()
def test_image_and_title_both_count(encoder: DashClipEncoder, batch: ProductBatch) -> None:
    before_BD = encoder.product(batch)
    other_image = replace(batch, pixels_BCHW=batch.pixels_BCHW.flip(0))
    other_title = replace(batch, ids_BT=batch.ids_BT.flip(0), mask_BT=batch.mask_BT.flip(0))
    for changed in (other_image, other_title):
        assert (encoder.product(changed)[BOTH] - before_BD[BOTH]).norm() > 1e-3


@torch.no_grad()
def test_images_wait_for_the_completion_where_that_is_the_fusion(
    encoder: DashClipEncoder, catalog: ProductCatalog
) -> None:
    product = small_encoder(fusion="completion").product.eval()
    batch = batch_of(encoder, catalog, list(range(8)))
    before_BD = product(batch)
    assert [index for index in range(8) if not before_BD[index].any()] == [NO_TITLE, NEITHER]
    alone_BD = product(replace(batch, has_image_B=torch.zeros(8, dtype=torch.bool)))
    torch.testing.assert_close(before_BD, alone_BD)
    product.completion = seeded(lambda: Completion(16, encoder.config.vocab_size, image_dim=16), 0)
    product.eval()
    after_BD = product(batch)
    assert [index for index in range(8) if not after_BD[index].any()] == [NEITHER]
    torch.testing.assert_close(after_BD[BOTH], before_BD[BOTH])
    assert after_BD[NO_IMAGE].equal(before_BD[NO_IMAGE])


@torch.no_grad()
def test_pixels_of_a_product_without_an_image_are_not_looked_at(
    encoder: DashClipEncoder, batch: ProductBatch
) -> None:
    pixels_BCHW = batch.pixels_BCHW.clone()
    pixels_BCHW[[NO_IMAGE, NEITHER]] = 7.0
    assert encoder.product(replace(batch, pixels_BCHW=pixels_BCHW)).equal(encoder.product(batch))


@torch.no_grad()
def test_the_grounded_text_starts_with_the_encode_token_and_the_batch_stays_as_it_is(
    encoder: DashClipEncoder, batch: ProductBatch
) -> None:
    ids_BT, image_BIH = batch.ids_BT.clone(), encoder.product.image_tokens(batch.pixels_BCHW)
    grounded_BTH = encoder.product.grounded_tokens(batch.ids_BT, batch.mask_BT, image_BIH)
    assert batch.ids_BT.equal(ids_BT)
    ids_BT[:, 0] = encoder.tokenizer.enc_id
    expected_BTH = encoder.product.text(
        input_ids=ids_BT, attention_mask=batch.mask_BT, encoder_hidden_states=image_BIH
    ).last_hidden_state
    assert grounded_BTH.equal(expected_BTH)
    assert not grounded_BTH.allclose(encoder.product.text_tokens(ids_BT, batch.mask_BT))


@torch.no_grad()
def test_a_later_token_changes_an_earlier_state(encoder: DashClipEncoder, batch: ProductBatch) -> None:
    """The decoder flag that switches cross-attention on must not make attention causal."""
    ids_BT = batch.ids_BT.clone()
    ids_BT[BOTH, 2] = encoder.tokenizer.unk_id
    before_BTH, after_BTH = (
        encoder.product.text_tokens(ids, batch.mask_BT) for ids in (batch.ids_BT, ids_BT)
    )
    assert (before_BTH[BOTH, 0] - after_BTH[BOTH, 0]).norm() > 1e-3


@torch.no_grad()
def test_new_weights_tell_images_apart(catalog: ProductCatalog) -> None:
    encoder = small_encoder()
    fresh = DashClipEncoder.new(encoder.config, encoder.tokenizer, seed=3).product.eval()
    batch = batch_of(encoder, catalog, [0, 4, 5, 6, 7])
    image_BD = fresh.image_features(fresh.image_tokens(batch.pixels_BCHW))
    assert (image_BD[1:] - image_BD[:1]).norm(dim=1).min() > 1e-3


@torch.no_grad()
def test_the_query_encoder_starts_as_the_text_encoder(encoder: DashClipEncoder, batch: ProductBatch) -> None:
    query = encoder.with_query_encoder().query
    assert query is not None
    query.eval()
    text_BTH = encoder.product.text_tokens(batch.ids_BT, batch.mask_BT)
    assert query(batch.ids_BT, batch.mask_BT).equal(encoder.product.text_features(text_BTH, batch.mask_BT))
    own = {parameter.data_ptr() for parameter in encoder.product.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in query.parameters())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_freezing_stops_the_embeddings_and_the_first_layers_alone(count: int) -> None:
    product = small_encoder().product
    for encoder, layer in ((product.vision, "encoder.layers"), (product.text, "encoder.layer")):
        freeze_first_layers(encoder, count)
        frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
        starts = ("embeddings.", *(f"{layer}.{number}." for number in range(count))) if count else ()
        assert (
            frozen == {name for name, _ in encoder.named_parameters() if name.startswith(starts)}
            if starts
            else not frozen
        )
    assert all(part.requires_grad for part in product.itm_head.parameters())


def test_more_frozen_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="first 3 layers of an encoder that has 2"):
        freeze_first_layers(small_encoder().product.text, 3)


def test_a_seed_names_the_weights_and_leaves_the_callers_random_state() -> None:
    config = EncoderConfig.preset("tiny", vocab_size=50)
    state = torch.get_rng_state()
    first, same, other = (seeded(lambda: QueryEncoder(config), seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert first.query_proj.weight.equal(same.query_proj.weight)
    assert not first.query_proj.weight.equal(other.query_proj.weight)


def test_gradients_reach_every_part_that_makes_the_product_vector(
    catalog: ProductCatalog, batch: ProductBatch
) -> None:
    product = small_encoder(fusion="grounded").product
    product(batch).sum().backward()
    without = {name for name, parameter in product.named_parameters() if parameter.grad is None}
    heads = ("vision_proj", "text_proj", "itm_head")
    assert without == {name for name, _ in product.named_parameters() if name.startswith(heads)}


def test_the_sizes_fit_their_layers_and_base_is_blip_base() -> None:
    base = EncoderConfig.preset("base")
    assert (base.vocab_size, base.text_layers, base.vision_heads, base.embedding_dim) == (30_524, 12, 12, 256)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ProductEncoder(base, enc_id=30_523).parameters())
    # BLIP's retrieval model, 223 M, and one more projection.
    assert 223e6 < parameters < 225e6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 33}, "image_size must be a multiple of patch_size, got 33 and 16"),
        ({"text_heads": 5}, "text_hidden_dim must be a multiple of text_heads, got 32 and 5"),
        ({"embedding_dim": 10}, "multiple of 4"),
        ({"layers": 3}, "layers"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, int], sentence: str) -> None:
    settings = EncoderConfig.preset("tiny", vocab_size=50).model_dump() | changes
    with pytest.raises(ValidationError, match=sentence):
        EncoderConfig.model_validate(settings)
