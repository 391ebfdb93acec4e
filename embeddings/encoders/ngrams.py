"""Character n-grams of a text as one vector: what a text encoder of word pieces cannot see.

A misspelt word falls into pieces that share nothing with the right ones, while most of its n-grams stay. As
in fastText (Bojanowski et al. 2017) each n-gram has a row of a hashed table, and as in DSSM (Huang et al.
2013) a text is the sum of its rows. The n-grams are read off the word pieces themselves, so a text is still
its token ids alone, to every caller. Plain torch: servers run it, too.

Shapes: B texts, T tokens, V vocabulary, C characters of a piece, L characters of a text, N n-grams of one
length, G width of the table.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.catalog.device_copies import asking_waits

LENGTHS = (3, 4)
#: Characters of a piece that are read.
PIECE_CHARACTERS = 24
#: An n-gram of fewer texts says nothing at first.
FEWEST_TEXTS = 2
#: Codes of characters: none, the border of a word, and from 2 on the characters of the vocabulary.
_NONE, _BORDER, _FIRST = 0, 1, 2
#: Odd multiplier of a multiplicative hash (Knuth); products wrap around at 64 bits.
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
_CONTINUES = "##"


class CharacterNgrams(nn.Module):
    """Token ids to the scaled sum of the rows of all 3- and 4-grams inside words, borders included."""

    character_VC: Tensor

    def __init__(self, vocab_size: int, buckets: int, width: int) -> None:
        """Rows are drawn from a unit normal; `read_vocabulary` must follow, or a state dict."""
        super().__init__()
        self.table = nn.EmbeddingBag(buckets, width, mode="sum")
        nn.init.normal_(self.table.weight)
        self.register_buffer("character_VC", torch.zeros(vocab_size, PIECE_CHARACTERS, dtype=torch.int16))

    @torch.no_grad()
    def read_vocabulary(self, tokens: Sequence[str], *, special: Sequence[str], end: str) -> None:
        """Note the characters of each token, which has the id of its position.

        Args:
            special: tokens without characters.
            end: the special token that closes the last word.
        """
        known = {character for token in tokens if token not in special for character in token}
        code = {character: _FIRST + number for number, character in enumerate(sorted(known))}
        for token, row_C in zip(tokens, self.character_VC, strict=True):
            if token == end:
                codes = [_BORDER]
            elif token in special:
                codes = []
            else:
                begins = [] if token.startswith(_CONTINUES) else [_BORDER]
                codes = [*begins, *(code[character] for character in token.removeprefix(_CONTINUES))]
            codes = codes[:PIECE_CHARACTERS]
            row_C[: len(codes)] = torch.tensor(codes, dtype=torch.int16)

    @torch.no_grad()
    def forget_rare(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Let rows start at zero whose n-grams are in fewer than `FEWEST_TEXTS` of these ids and masks.

        An n-gram that only a misspelling has would add noise; as in TF-IDF, it says nothing.
        """
        buckets = self.table.num_embeddings
        texts_H = torch.zeros(buckets, dtype=torch.int64)
        for ids_BT, mask_BT in batches:
            bucket_BN, exists_BN = self.buckets(ids_BT, mask_BT)
            text_B1 = torch.arange(len(bucket_BN)).unsqueeze(1)
            once = (text_B1 * buckets + bucket_BN)[exists_BN > 0].unique()
            texts_H += torch.bincount(once % buckets, minlength=buckets)
        self.table.weight[texts_H < FEWEST_TEXTS] = 0

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, G]; zeros for a text without n-grams. Division by the root of their number keeps the length."""
        bucket_BN, weight_BN = self.buckets(ids_BT, mask_BT)
        count_B1 = weight_BN.sum(dim=1, keepdim=True).clamp_min(1)
        return self.table(bucket_BN, per_sample_weights=weight_BN / count_B1.sqrt())

    def buckets(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table, and 1 where there is an n-gram, else 0; both [B, N], all lengths in turn."""
        code_BL = self._characters(ids_BT, mask_BT)
        buckets, exists = [], []
        for length in LENGTHS:
            window_BNn = functional.pad(code_BL, (0, length)).unfold(1, length, 1)
            inside_BN = (window_BNn[:, :, 1:-1] > _BORDER).all(dim=2)
            exists.append(inside_BN & (window_BNn[:, :, 0] != _NONE) & (window_BNn[:, :, -1] != _NONE))
            hash_BN = torch.full_like(window_BNn[:, :, 0], length)
            for place in range(length):
                hash_BN = (hash_BN ^ window_BNn[:, :, place]) * _MULTIPLIER
                hash_BN = hash_BN ^ (hash_BN >> 29)
            buckets.append(hash_BN.remainder(self.table.num_embeddings))
        return torch.cat(buckets, dim=1), torch.cat(exists, dim=1).to(self.table.weight.dtype)

    def _characters(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Codes of each text side by side, closed up, int64 [B, L]."""
        code_BTC = self.character_VC[ids_BT].long() * mask_BT.unsqueeze(2)
        code_BX = code_BTC.flatten(1)
        there_BX = code_BX != _NONE
        place_BX = there_BX.cumsum(dim=1) - 1
        # on a GPU one would wait for the length of the longest; what is beyond it weighs nothing
        longest = there_BX.shape[1]
        if not asking_waits(there_BX):
            longest = int(there_BX.sum(dim=1).max()) if len(code_BX) else 0
        # what is none goes to a column that is cut off
        place_BX = torch.where(there_BX, place_BX, longest)
        code_BL = code_BX.new_zeros(len(code_BX), longest + 1)
        return code_BL.scatter(1, place_BX, code_BX)[:, :longest]
