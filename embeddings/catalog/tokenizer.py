"""Text to token ids: a WordPiece vocabulary with BERT's normaliser, trained on a catalogue or BERT's own.

Text is lower-cased, accents are stripped, punctuation and symbols (emoji, trade marks) stand alone. The last
is the one difference from BERT, where a word with an unknown emoji on it is unknown as a whole.

Shapes: B texts, T tokens of the longest one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InOrder
from tokenizers.trainers import WordPieceTrainer

from features.artifacts import atomic_write_bytes

PAD, UNK, CLS, SEP, MASK, DEC, ENC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"
#: [DEC] and [ENC] are BLIP's own: after the vocabulary of BERT they have the ids 30522 and 30523.
SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK, DEC, ENC)
CONTINUES = "##"
#: Characters of a text that are looked at, for each token that is kept; English has about 5 per token.
CHARACTERS_PER_TOKEN = 32
#: Most of a trained vocabulary that single characters may take; one inside words takes two pieces, a and ##a.
ALPHABET_SHARE = 0.5


class TokenizerError(ValueError):
    """A vocabulary that cannot be trained, read or used; the message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Texts as ids: [CLS], the pieces, [SEP], and [PAD] up to the longest text of the batch.

    `mask_BT` is 1 at tokens and 0 at padding. `known_B`: the text has a piece that is in the vocabulary.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    known_B: torch.Tensor


class TextTokenizer:
    """Splits texts into pieces of a fixed vocabulary; special tokens written out in a text are plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer of `from_vocabulary`, `train` or `load`; use those."""
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        special = [vocabulary[token] for token in SPECIAL_TOKENS]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.dec_id, self.enc_id = special
        self._is_piece_V = np.ones(self.vocab_size, dtype=bool)
        self._is_piece_V[special] = False

    @classmethod
    def from_vocabulary(cls, tokens: Sequence[str]) -> Self:
        """A tokenizer whose ids are the positions of `tokens`; [DEC] and [ENC] are appended if they lack.

        The 30,522 lines of BERT's vocabulary give a vocabulary of 30,524, the one of BLIP.

        Raises:
            TokenizerError: a token is repeated, a special token is missing, or [PAD] is not the first.
        """
        vocabulary = list(tokens)
        vocabulary += [token for token in (DEC, ENC) if token not in set(vocabulary)]
        repeated = [token for token, count in Counter(vocabulary).items() if count > 1]
        if repeated:
            raise TokenizerError(
                f"tokens must be unique, but {repeated[0]!r} appears more than once "
                f"({len(repeated)} are repeated); keep each once"
            )
        lacking = [token for token in SPECIAL_TOKENS if token not in set(vocabulary)]
        if lacking or vocabulary[0] != PAD:
            raise TokenizerError(
                f"a vocabulary must hold {', '.join(SPECIAL_TOKENS[:5])} with {PAD} first, as BERT's does; "
                + (f"missing: {', '.join(lacking)}" if lacking else f"this one starts with {vocabulary[0]!r}")
            )
        return cls(_word_pieces({token: position for position, token in enumerate(vocabulary)}))

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> Self:
        """Learn at most `vocab_size` pieces, special tokens included; the same texts give the same ids.

        The order of the texts does not matter. Characters and merges seen fewer than `min_frequency` times
        are left out; a word with such a character is unknown.

        Raises:
            TokenizerError: `vocab_size` leaves no room for pieces.
        """
        if vocab_size <= len(SPECIAL_TOKENS):
            raise TokenizerError(
                f"vocab_size must exceed the {len(SPECIAL_TOKENS)} special tokens, got {vocab_size}"
            )
        tokenizer = _word_pieces({token: position for position, token in enumerate(SPECIAL_TOKENS)})
        words = Counter(word for text in texts for word in words_of(text))
        room = int(ALPHABET_SHARE * (vocab_size - len(SPECIAL_TOKENS)))
        alphabet, inside = _alphabet(words, room=room, min_frequency=min_frequency)
        # The trainer numbers "##" pieces in the order of a random hash and breaks ties by number. Given as
        # special tokens they have fixed numbers; the tokenizer built below knows them as plain pieces.
        trainer = WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[*SPECIAL_TOKENS, *(CONTINUES + character for character in inside)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_repeated(words), trainer)
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        return cls.from_vocabulary(sorted(vocabulary, key=vocabulary.__getitem__))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `tokenizer.json` of `save`, or of an uncased BERT.

        Raises:
            TokenizerError: the file is no such tokenizer.
        """
        # Read here: the library reports a missing file as an error of its own kind.
        return cls.from_json(Path(path).read_bytes(), source=str(path))

    @classmethod
    def from_json(cls, content: str | bytes, *, source: str) -> Self:
        """As `load`, of the content of such a file; `source` is what errors name.

        Raises:
            TokenizerError: it is no such tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_str(content if isinstance(content, str) else content.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(
                f"{source} is not a tokenizer.json of the tokenizers library: {error}"
            ) from None
        normalizer = tokenizer.normalizer
        if not isinstance(tokenizer.model, WordPiece) or not isinstance(normalizer, BertNormalizer):
            raise TokenizerError(
                f"{source} must be a WordPiece tokenizer with BERT's normaliser, got "
                f"{type(tokenizer.model).__name__} with {type(normalizer).__name__}"
            )
        if not normalizer.lowercase:
            raise TokenizerError(f"{source} keeps upper case; only uncased vocabularies are supported")
        if normalizer.strip_accents is False:  # None follows lowercase
            raise TokenizerError(f"{source} keeps accents; only vocabularies without them are supported")
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise TokenizerError(f"{source}: the ids must be 0 to {len(tokens) - 1} without gaps")
        return cls.from_vocabulary(tokens)

    def save(self, path: Path) -> None:
        """Write one `tokenizer.json`; it appears whole or not at all."""
        atomic_write_bytes(Path(path), self._tokenizer.to_str(pretty=True).encode())

    @property
    def tokens(self) -> list[str]:
        """The vocabulary; the position of a token is its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def __call__(self, texts: Sequence[str | None], *, max_tokens: int, prefix: str = "") -> TokenBatch:
        """Ids of texts, [CLS] and [SEP] included in `max_tokens`; what is longer is cut.

        None and "" become [CLS] [SEP]. Only the first 32 characters per token are read, so that a text of
        10,000 characters costs no more than one that fits. The pieces of `prefix` come before those of each
        text, count as tokens, and make no text known.

        Raises:
            TokenizerError: `max_tokens` leaves no room for a piece.
        """
        before: list[int] = self._tokenizer.encode(prefix, add_special_tokens=False).ids if prefix else []
        if max_tokens < 3 + len(before):
            raise TokenizerError(
                f"max_tokens must be at least {3 + len(before)} ([CLS], "
                + (f"{len(before)} pieces of the prefix {prefix!r}, " if before else "")
                + f"a piece, [SEP]), got {max_tokens}"
            )
        limit = CHARACTERS_PER_TOKEN * max_tokens
        encodings = self._tokenizer.encode_batch_fast(
            [_encodable((text or "").lstrip()[:limit]) for text in texts], add_special_tokens=False
        )
        pieces = [before + encoding.ids[: max_tokens - 2 - len(before)] for encoding in encodings]
        length_B = np.fromiter(map(len, pieces), np.int64, len(pieces)) + 2
        ids_BT = np.full((len(pieces), int(length_B.max(initial=2))), self.pad_id, np.int64)
        ids_BT[:, 0] = self.cls_id
        for row_T, ids in zip(ids_BT, pieces, strict=True):
            row_T[1 : 1 + len(ids)] = ids
        ids_BT[np.arange(len(pieces)), length_B - 1] = self.sep_id
        mask_BT = (np.arange(ids_BT.shape[1]) < length_B[:, None]).astype(np.int64)
        return TokenBatch(
            ids_BT=torch.from_numpy(ids_BT),
            mask_BT=torch.from_numpy(mask_BT),
            known_B=torch.from_numpy(self._is_piece_V[ids_BT[:, 1 + len(before) :]].any(axis=1)),
        )


def words_of(text: str) -> list[str]:
    """The words that a text is split into before the vocabulary comes in, each to be cut into pieces.

    Texts of equal words are one text to every encoder. Case, accents, invisible characters such as the soft
    hyphen, and spaces make no difference; punctuation marks and symbols are words of their own.

    >>> words_of("Café  au-lait ☕")
    ['cafe', 'au', '-', 'lait', '☕']
    """
    normalizer, pre_tokenizer = _word_splitter()
    normal = normalizer.normalize_str(_encodable(text))
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(normal)]


@cache
def _word_splitter() -> tuple[BertNormalizer, InOrder]:
    normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    return normalizer, InOrder([Split(Regex(r"\p{So}"), "isolated"), BertPreTokenizer()])


def _word_pieces(vocabulary: dict[str, int]) -> Tokenizer:
    # Special tokens are not registered as such: the library would find them inside of texts.
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _word_splitter()
    return tokenizer


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which Python's strings may hold and the library refuses."""
    return text.encode("utf-8", "ignore").decode("utf-8")


def _alphabet(words: Counter[str], *, room: int, min_frequency: int) -> tuple[list[str], list[str]]:
    """Characters for `room` pieces, the most frequent first, ties by code point; and which of them continue
    a word, as those take two pieces.
    """
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        inside.update(word[1:])
        for character in word:
            counts[character] += count
    kept: list[str] = []
    for character, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        room -= 1 + (character in inside)
        if count < min_frequency or room < 0:
            break
        kept.append(character)
    return sorted(kept), sorted(inside.intersection(kept))


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it was counted, in sorted order; the pre-tokenizer parts them again."""
    for word in sorted(words):
        count = words[word]
        while count > 0:
            yield " ".join([word] * min(count, 1000))
            count -= 1000
