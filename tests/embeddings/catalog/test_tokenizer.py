"""The tokenizer: the same texts give the same ids, BERT's splitting, and odd texts neither fail nor cost."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer

from embeddings.catalog import tokenizer as module
from embeddings.catalog.tokenizer import SPECIAL_TOKENS, TextTokenizer, TokenizerError

TEXTS = [
    "Orange Juice 12oz",
    "Orange Marmalade, 500 g",
    "Crème Brûlée Yoghurt",
    "Low-Fat Milk 1 l",
    "Milk Chocolate Bar 🍫",
    "Dark Chocolate Bar 70% 🍫",
    "Toothpaste Mint 75ml",
] * 3
BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "juice", "jui", "##ce", "##s", "!", "a"]


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocab_size=160)


def pieces(tokenizer: TextTokenizer, text: str | None, *, max_tokens: int = 64) -> list[str]:
    """What stands between [CLS] and [SEP]."""
    ids = tokenizer([text], max_tokens=max_tokens).ids_BT[0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
    return [tokenizer.tokens[position] for position in ids[1:-1]]


def test_a_batch_is_cls_pieces_sep_and_padding() -> None:
    tokenizer = TextTokenizer.from_vocabulary(BERT)
    batch = tokenizer(["Juices!", "a", None], max_tokens=8)
    assert batch.ids_BT.tolist() == [[3, 6, 9, 10, 4], [3, 11, 4, 0, 0], [3, 4, 0, 0, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert batch.known_B.tolist() == [True, True, False]
    assert (batch.ids_BT.dtype, batch.mask_BT.dtype, batch.known_B.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


def test_after_a_vocabulary_of_bert_come_dec_and_enc() -> None:
    filler = [f"word{position}" for position in range(30_522 - 5)]
    tokenizer = TextTokenizer.from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *filler])
    assert (tokenizer.vocab_size, tokenizer.dec_id, tokenizer.enc_id) == (30_524, 30_522, 30_523)
    assert tokenizer.pad_id == 0


def test_a_vocabulary_that_has_dec_and_enc_keeps_their_places() -> None:
    tokenizer = TextTokenizer.from_vocabulary(["[PAD]", "[ENC]", "[DEC]", *BERT[2:]])
    assert (tokenizer.enc_id, tokenizer.dec_id, tokenizer.vocab_size) == (1, 2, len(BERT) + 1)


def test_text_splits_as_in_bert_but_for_symbols() -> None:
    from transformers import BertTokenizer

    words = ["creme", "brulee", "juice", "##s", "low", "fat", "-", ",", ".", "%", "'", "12", "##oz"]
    words += ["c", "##reme", "中", "国", "a", "##b", "[", "]", "sep"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    ours = TextTokenizer.from_vocabulary(vocabulary)
    theirs = BertTokenizer(vocab={token: position for position, token in enumerate(vocabulary)})
    texts = [
        "Crème brûlée, LOW-fat!",
        "  12oz\tjuices\u00a0% ",
        "中国 juice",
        "it's a.b ab\u200bb",
        "x" * 101,
        "",
        "-",
    ]
    batch = ours(texts, max_tokens=40)
    expected = theirs(texts, padding=True, truncation=True, max_length=40)
    assert batch.ids_BT.tolist() == expected["input_ids"]
    assert batch.mask_BT.tolist() == expected["attention_mask"]


def test_a_symbol_does_not_make_the_word_beside_it_unknown() -> None:
    tokenizer = TextTokenizer.from_vocabulary(BERT)
    assert pieces(tokenizer, "juice🍊") == ["juice", "[UNK]"]
    assert pieces(tokenizer, "Juice™s") == ["juice", "[UNK]", "[UNK]"]


def test_text_of_unknown_characters_only_is_not_known(trained: TextTokenizer) -> None:
    texts = ["🥑🥑", "ЖЖЖ", "   ", "", None, "🍫", "🥑 milk", "\ufffd\x00", "❤️‍🔥"]
    known = trained(texts, max_tokens=8).known_B.tolist()
    assert known == [False, False, False, False, False, True, True, False, False]


def test_a_special_token_written_out_in_a_text_is_plain_text(trained: TextTokenizer) -> None:
    special = {trained.tokens.index(token) for token in SPECIAL_TOKENS} - {trained.unk_id}
    ids = trained(["milk [SEP] [PAD] [ENC][CLS] milk [MASK]"], max_tokens=64).ids_BT[0, 1:-1].tolist()
    assert not special.intersection(ids)


def test_half_of_a_surrogate_pair_is_dropped(trained: TextTokenizer) -> None:
    assert pieces(trained, "mi\ud83clk") == ["milk"]
    assert TextTokenizer.train(["mi\ud83clk"] * 2, vocab_size=50).tokens[-1] == "milk"


def test_case_and_accents_do_not_matter(trained: TextTokenizer) -> None:
    assert pieces(trained, "CRÈME brûlée") == pieces(trained, "creme Brulee")


def test_training_ends_with_whole_frequent_words(trained: TextTokenizer) -> None:
    assert pieces(trained, "orange milk chocolate") == ["orange", "milk", "chocolate"]
    assert trained.vocab_size == len(trained.tokens) <= 160
    assert tuple(trained.tokens[:7]) == SPECIAL_TOKENS
    assert trained.pad_id == 0


def test_every_word_made_of_frequent_characters_is_known(trained: TextTokenizer) -> None:
    assert "[UNK]" not in pieces(trained, "chocomint orangemilk")


def test_the_order_of_the_texts_does_not_matter(trained: TextTokenizer) -> None:
    shuffled = list(TEXTS)
    random.Random(0).shuffle(shuffled)
    assert TextTokenizer.train(iter(shuffled), vocab_size=160).tokens == trained.tokens


def test_another_process_learns_the_same_vocabulary() -> None:
    texts = [f"{first}{second}{first}" for first in "abcdefgh" for second in "stuvwxyz"] * 2  # many ties
    code = (
        "import json, sys; from embeddings.catalog.tokenizer import TextTokenizer;"
        "print(json.dumps(TextTokenizer.train(json.loads(sys.argv[1]), vocab_size=80).tokens))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    ).stdout
    assert json.loads(output) == TextTokenizer.train(texts, vocab_size=80).tokens


def test_rare_characters_are_left_out_of_the_vocabulary() -> None:
    tokenizer = TextTokenizer.train(["milk", "milk", "мо"], vocab_size=100, min_frequency=2)
    assert not {"м", "о", "##о"}.intersection(tokenizer.tokens)
    assert pieces(tokenizer, "мо milk") == ["[UNK]", "milk"]


def test_characters_take_at_most_half_of_the_vocabulary() -> None:
    many = [chr(0x4E00 + position) for position in range(400)]
    texts = many * 2 + ["orange juice"] * 50
    tokenizer = TextTokenizer.train(texts, vocab_size=107)
    single = [token for token in tokenizer.tokens[7:] if len(token.removeprefix("##")) == 1]
    assert len(single) <= 50
    assert pieces(tokenizer, "orange juice") == ["orange", "juice"]


def test_nothing_to_learn_from_leaves_the_special_tokens() -> None:
    assert tuple(TextTokenizer.train([], vocab_size=50).tokens) == SPECIAL_TOKENS


@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), max_tokens=st.integers(3, 20))
@settings(max_examples=40, deadline=None)
def test_a_batch_equals_its_texts_one_by_one(texts: list[str], max_tokens: int) -> None:
    tokenizer = TextTokenizer.train(TEXTS, vocab_size=80)
    batch = tokenizer(texts, max_tokens=max_tokens)
    assert batch.ids_BT.shape[1] <= max_tokens
    for row, text in enumerate(texts):
        alone = tokenizer([text], max_tokens=max_tokens)
        length = int(batch.mask_BT[row].sum())
        assert alone.ids_BT[0].tolist() == batch.ids_BT[row, :length].tolist()
        assert (batch.ids_BT[row, length:] == tokenizer.pad_id).all()
        assert (batch.mask_BT[row] == (torch.arange(batch.ids_BT.shape[1]) < length)).all()
        assert alone.known_B[0] == batch.known_B[row]


def test_a_long_text_is_cut_to_its_first_pieces_and_ends_with_sep(trained: TextTokenizer) -> None:
    whole = pieces(trained, "orange juice " * 20, max_tokens=64)
    assert pieces(trained, "orange juice " * 800, max_tokens=12) == whole[:10]


def test_the_pieces_of_a_prefix_come_first_and_make_no_text_known(trained: TextTokenizer) -> None:
    texts = ["milk", "", None, "日", "orange juice " * 20]
    apart = trained(texts, max_tokens=9, prefix="mint bar: ")
    together = trained([f"mint bar: {text or ''}" for text in texts], max_tokens=9)
    assert torch.equal(apart.ids_BT, together.ids_BT)
    assert torch.equal(apart.mask_BT, together.mask_BT)
    assert apart.known_B.tolist() == [True, False, False, False, True]
    least = 3 + len(pieces(trained, "mint bar: "))
    assert trained(["milk"], max_tokens=least, prefix="mint bar: ").known_B.tolist() == [True]
    with pytest.raises(TokenizerError, match="pieces of the prefix 'mint bar: '"):
        trained(["milk"], max_tokens=least - 1, prefix="mint bar: ")


def test_only_the_start_of_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer.from_vocabulary(BERT)
    read: list[int] = []

    class Recording:
        def encode_batch_fast(self, texts: list[str], **options: bool) -> list:
            read.extend(map(len, texts))
            return Tokenizer.encode_batch_fast(original, texts, **options)

    original = tokenizer._tokenizer
    monkeypatch.setattr(tokenizer, "_tokenizer", Recording())
    tokenizer(["juice " * 2000, " " * 9000 + "a"], max_tokens=8)
    assert read == [8 * module.CHARACTERS_PER_TOKEN, 1]


def test_an_empty_batch_has_no_rows(trained: TextTokenizer) -> None:
    batch = trained([], max_tokens=8)
    assert batch.ids_BT.shape == (0, 2)
    assert batch.known_B.shape == (0,)


def test_saved_and_loaded_it_gives_the_same_ids(trained: TextTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    texts = [*TEXTS, "juice🍫x", "[SEP] milk"]
    assert loaded.tokens == trained.tokens
    assert torch.equal(loaded(texts, max_tokens=16).ids_BT, trained(texts, max_tokens=16).ids_BT)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_saving_twice_gives_the_same_bytes(trained: TextTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "a.json")
    TextTokenizer.load(tmp_path / "a.json").save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_uncased_bert_tokenizer_file_loads(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer(vocab={token: position for position, token in enumerate(BERT)})
    theirs.save_pretrained(tmp_path)
    ours = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert ours.tokens == [*BERT, "[DEC]", "[ENC]"]
    assert pieces(ours, "Juices") == ["juice", "##s"]


def test_a_file_that_is_no_such_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError):
        TextTokenizer.load(path)
    for content in ("", "{}", "[1]"):
        path.write_text(content)
        with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
            TextTokenizer.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
        TextTokenizer.load(path)
    Tokenizer(BPE()).save(str(path))
    with pytest.raises(TokenizerError, match="must be a WordPiece tokenizer"):
        TextTokenizer.load(path)


def test_a_cased_vocabulary_is_refused(tmp_path: Path) -> None:
    cased = TextTokenizer.from_vocabulary(BERT)._tokenizer
    cased.normalizer = BertNormalizer(lowercase=False)
    cased.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="upper case"):
        TextTokenizer.load(tmp_path / "tokenizer.json")


def test_a_vocabulary_with_accents_is_refused(tmp_path: Path) -> None:
    accented = TextTokenizer.from_vocabulary(BERT)._tokenizer
    accented.normalizer = BertNormalizer(strip_accents=False)
    accented.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="keeps accents"):
        TextTokenizer.load(tmp_path / "tokenizer.json")


def test_a_failed_save_leaves_the_old_file(
    trained: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        trained.save(path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    "tokens, said",
    [
        ([*BERT, "juice"], "'juice' appears more than once"),
        (["[PAD]", "[UNK]", "[CLS]"], r"missing: \[SEP\], \[MASK\]$"),
        (["juice", *BERT[:6]], "starts with 'juice'"),
        ([], "missing"),
    ],
)
def test_an_unusable_vocabulary_is_refused(tokens: list[str], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        TextTokenizer.from_vocabulary(tokens)


def test_sizes_without_room_are_refused(trained: TextTokenizer) -> None:
    with pytest.raises(TokenizerError, match="max_tokens must be at least 3"):
        trained(["milk"], max_tokens=2)
    with pytest.raises(TokenizerError, match="vocab_size must exceed"):
        TextTokenizer.train(TEXTS, vocab_size=7)
