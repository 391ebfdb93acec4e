"""The character n-grams beside the word pieces, against a slow second way to count them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.catalog.terms import character_ngrams
from embeddings.catalog.tokenizer import SEP, SPECIAL_TOKENS, TextTokenizer, words_of
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.ngrams import CharacterNgrams

TITLES = ["oat milk barista 1 l", "chocolate oat bar", "rye bread with seeds", "hazelnut chocolate spread"]
TOKENIZER = TextTokenizer.train(TITLES * 2, vocab_size=90)
TYPED = ["oat", "milk", "bar", "chocolatte", "sedes", "1", "l", "i", "brread", "rye"]
WORDS = st.lists(st.sampled_from(TYPED), max_size=8)
BUCKETS = 1 << 20


def ngrams_of(buckets: int = BUCKETS, width: int = 1) -> CharacterNgrams:
    module = CharacterNgrams(TOKENIZER.vocab_size, buckets, width)
    module.read_vocabulary(TOKENIZER.tokens, special=SPECIAL_TOKENS, end=SEP)
    return module


COUNTED = ngrams_of()


def buckets_of(module: CharacterNgrams, texts: list[str]) -> list[list[int]]:
    tokens = TOKENIZER(texts, max_tokens=64)
    bucket_BN, exists_BN = module.buckets(tokens.ids_BT, tokens.mask_BT)
    return [sorted(row[there > 0].tolist()) for row, there in zip(bucket_BN, exists_BN, strict=True)]


@settings(deadline=None)
@given(WORDS, WORDS)
def test_a_text_has_the_n_grams_that_lsa_counts(left: list[str], right: list[str]) -> None:
    found = buckets_of(COUNTED, [" ".join(left), " ".join(right)])
    bucket_of: dict[str, int] = {}
    for words, buckets in zip((left, right), found, strict=True):
        expected = character_ngrams(" ".join(words_of(" ".join(words))))
        assert len(buckets) == len(expected)
        for ngram in set(expected):
            bucket_of.setdefault(ngram, _bucket(COUNTED, ngram))
        assert buckets == sorted(bucket_of[ngram] for ngram in expected)


def _bucket(module: CharacterNgrams, ngram: str) -> int:
    """The hash in plain Python, 64-bit arithmetic by hand."""
    known = sorted({c for token in TOKENIZER.tokens if token not in SPECIAL_TOKENS for c in token})
    hashed = len(ngram)
    for character in ngram:
        code = 1 if character == " " else 2 + known.index(character)
        hashed = ((hashed ^ code) * 0x9E3779B97F4A7C15) % 2**64
        signed = hashed - 2**64 if hashed >= 2**63 else hashed
        hashed = (signed ^ (signed >> 29)) % 2**64
    return (hashed - 2**64 if hashed >= 2**63 else hashed) % module.table.num_embeddings


def test_a_misspelt_word_keeps_most_of_its_vector() -> None:
    torch.manual_seed(0)
    module = ngrams_of(4096, 512)
    tokens = TOKENIZER(["chocolate", "chocolatte", "hazelnut"], max_tokens=24)
    right, misspelt, other = torch.nn.functional.normalize(module(tokens.ids_BT, tokens.mask_BT), dim=1)
    assert right @ misspelt > 0.5
    assert abs(right @ other) < 0.3


def test_the_vector_of_a_text_does_not_depend_on_its_batch() -> None:
    module = ngrams_of(256, 16)
    alone = TOKENIZER(["oat milk"], max_tokens=24)
    beside = TOKENIZER(["hazelnut chocolate spread with seeds", "oat milk"], max_tokens=24)
    expected_BH = module(alone.ids_BT, alone.mask_BT)
    torch.testing.assert_close(module(beside.ids_BT, beside.mask_BT)[1:], expected_BH, rtol=0, atol=1e-6)


def test_n_grams_of_fewer_than_two_texts_start_at_zero() -> None:
    module = ngrams_of(1 << 16, 4)
    before_HG = module.table.weight.detach().clone()
    tokens = TOKENIZER(["oat bar", "oat milk", "milk milk"], max_tokens=24)
    module.forget_rare([(tokens.ids_BT[:2], tokens.mask_BT[:2]), (tokens.ids_BT[2:], tokens.mask_BT[2:])])
    kept = {_bucket(module, ngram) for ngram in character_ngrams("oat milk")}
    for bucket in {_bucket(module, ngram) for ngram in character_ngrams("oat milk bar")}:
        row_G = module.table.weight[bucket]
        assert torch.equal(row_G, before_HG[bucket] if bucket in kept else torch.zeros(4))
    assert int((module.table.weight.abs().sum(dim=1) > 0).sum()) == len(kept)


def test_a_text_without_words_has_no_n_grams() -> None:
    tokens = TOKENIZER(["", "☕ ☕"], max_tokens=24)
    assert COUNTED(tokens.ids_BT, tokens.mask_BT).abs().max() == 0


def test_an_encoder_with_n_grams_is_the_same_after_saving_and_its_query_side_starts_alike(tmp_path) -> None:
    config = EncoderConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, ngram_buckets=512)
    encoder = DashClipEncoder.new(config, TOKENIZER, seed=0)
    assert encoder.product.text.ngrams is not None
    assert encoder.product.text.ngrams.character_VC.any()
    before_BD = encoder.embed_queries(TITLES)
    aligned = encoder.with_query_encoder()
    torch.testing.assert_close(aligned.embed_queries(TITLES), before_BD)
    saved = aligned.save(tmp_path / "encoder", stage="aligned", trained_on={})
    assert torch.equal(saved.embed_queries(TITLES), aligned.embed_queries(TITLES))
    plain = EncoderConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size)
    assert DashClipEncoder.new(plain, TOKENIZER, seed=0).product.text.ngrams is None


@pytest.mark.parametrize("first", [0, 1])
def test_frozen_embeddings_freeze_the_n_grams(first: int) -> None:
    from embeddings.encoders.modules import freeze_first_layers

    config = EncoderConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, ngram_buckets=512)
    text = DashClipEncoder.new(config, TOKENIZER, seed=0).product.text
    freeze_first_layers(text, first)
    assert text.ngrams is not None
    assert text.ngrams.table.weight.requires_grad == (first == 0)
