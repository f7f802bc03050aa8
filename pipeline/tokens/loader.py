"""The order of training. Token shards in, samples of sequence + 1 tokens out; the whole state is one integer, the global
sample index.

The tokens of all shards form one stream. With n = (tokens - 1) // sequence, sample k of an epoch is the tokens
[k * sequence, k * sequence + sequence]: inputs are all but its last token, labels all but its first, and the last token of
one sample is the first of the next. So every label of an epoch is trained on exactly once; documents run on across samples,
eos between them. The tail of (tokens - 1) % sequence tokens, shorter than one sequence, is left out of every epoch.

Global sample i is sample permute(i % n) of epoch i // n, under a permutation that is computed, not stored: any sample can be
had at once, whatever came before. Ranks and world size do not occur here: a rank asks for its slice of the indices.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.tokens.shards import Shard

ROUNDS = 6  # of the Feistel network; 4 make a pseudo-random permutation (Luby and Rackoff 1988)


class Loader:
    """Shuffled samples of one source, without end: epoch after epoch, each in another order.

    `shards`: prefixes of token shards, in a fixed order. `sequence`: tokens per sample, without the extra label. `seed`: any
    integer. `tokenizer`: where given, the digest that the shards must carry. ValueError as of `TokenStream`.

    Attributes: `samples_per_epoch`, `vocabulary`.
    """

    def __init__(self, shards: Sequence[Path], sequence: int, seed: int, tokenizer: str | None = None) -> None:
        self.stream = TokenStream(shards, sequence, tokenizer)
        self.seed = seed
        self.samples_per_epoch = self.stream.samples
        self.vocabulary = self.stream.vocabulary

    def batch(self, first: int, count: int) -> np.ndarray:
        """Global samples first … first + count - 1: int64 [count, sequence + 1]."""
        epoch, position = np.divmod(np.arange(first, first + count, dtype=np.int64), self.samples_per_epoch)
        return self.stream.cut(permute(position, self.samples_per_epoch, self.seed, epoch))


class Validation:
    """The samples of a validation split, each once, in the order of the files: the same batches at every evaluation.

    Arguments and ValueError as of `Loader`. Attributes: `samples`, `vocabulary`.
    """

    def __init__(self, shards: Sequence[Path], sequence: int, tokenizer: str | None = None) -> None:
        self.stream = TokenStream(shards, sequence, tokenizer)
        self.samples = self.stream.samples
        self.vocabulary = self.stream.vocabulary

    def batch(self, first: int, count: int) -> np.ndarray:
        """Samples first … first + count - 1, as far as there are any: int64 [<= count, sequence + 1]."""
        return self.stream.cut(np.arange(min(first, self.samples), min(first + count, self.samples), dtype=np.int64))


class TokenStream:
    """The tokens of shards end to end, cut into samples; memory-mapped, so its memory does not grow with them.

    ValueError, in one line: no shards or no tokens, fewer tokens than a sample has, shards of different tokenizers or of
    another one than `tokenizer`, a broken shard.
    """

    def __init__(self, shards: Sequence[Path], sequence: int, tokenizer: str | None = None) -> None:
        if sequence < 1:
            raise ValueError(f"sequence={sequence}: a sample has at least one token")
        if not shards:
            raise ValueError("no token shards: the source is empty")
        opened = [Shard(Path(prefix)) for prefix in shards]
        self.sequence = sequence
        self.vocabulary = opened[0].vocabulary
        for shard in opened:
            if shard.vocabulary != self.vocabulary:
                raise ValueError(
                    f"{shard.prefix}: made with tokenizer {_short(shard.vocabulary.tokenizer)}, "
                    f"but {opened[0].prefix} with {_short(self.vocabulary.tokenizer)}: tokenize them with the same one"
                )
        if tokenizer is not None and tokenizer != self.vocabulary.tokenizer:
            raise ValueError(
                f"{opened[0].prefix}: made with tokenizer {_short(self.vocabulary.tokenizer)}, "
                f"not with {_short(tokenizer)}: tokenize again or give the tokenizer it was made with"
            )
        self.tokens = [shard.tokens for shard in opened]
        self.ends = np.cumsum([len(tokens) for tokens in self.tokens], dtype=np.int64)
        total = int(self.ends[-1])
        self.samples = max(0, total - 1) // sequence
        if not total:
            raise ValueError(f"{opened[0].prefix}: no tokens in {len(opened)} shard(s): the source is empty")
        if not self.samples:
            raise ValueError(
                f"{opened[0].prefix}: {total} tokens in {len(opened)} shard(s), "
                f"fewer than one sample of sequence={sequence} and its label: shorten the sequence or add text"
            )

    def cut(self, samples: np.ndarray) -> np.ndarray:
        """The samples of these numbers (int64 [count], each below `self.samples`): int64 [count, sequence + 1]."""
        rows = np.empty((len(samples), self.sequence + 1), np.int64)
        starts = samples * self.sequence
        shards = np.searchsorted(self.ends, starts, side="right")
        for row, start, shard in zip(rows, starts.tolist(), shards.tolist(), strict=True):
            offset = start - int(self.ends[shard]) + len(self.tokens[shard])
            filled = 0
            while filled < len(row):
                piece = self.tokens[shard][offset : offset + len(row) - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard, offset = shard + 1, 0
        return rows


def permute(position: np.ndarray, n: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where a seeded pseudo-random permutation of 0 … n - 1, one for each epoch, takes `position`.

    `position`, `epoch`: int64 [count], 0 <= position < n < 2^62; returns int64 [count]. A Feistel network on pairs modulo
    a = ceil(sqrt(n)) permutes 0 … a² - 1; what falls on n or above goes through it again until it does not (cycle walking):
    the generalised Feistel cipher of Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """
    side = np.uint64(_ceil_sqrt(n))
    base = _mix(_mix(np.array(seed % 2**64, np.uint64)) + epoch.astype(np.uint64))
    keys = [_mix(base + np.uint64(number)) for number in range(ROUNDS)]
    result = position.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        left, right = np.divmod(result[walking], side)
        for key in keys:
            left, right = right, (left + _mix(right + key[walking]) % side) % side
        result[walking] = left * side + right
        walking = walking[result[walking] >= n]
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014) on uint64: a bijection in which every bit counts."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _ceil_sqrt(n: int) -> int:
    return math.isqrt(n - 1) + 1


def _short(digest: str) -> str:
    return digest[:12]
