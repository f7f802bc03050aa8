"""The order of training. Token shards and a mixture in, samples of sequence + 1 tokens out; the whole state is one integer,
the global sample index.

The tokens of a source's shards, T in all, form a stream that begins anew at its end: epoch after epoch. Sample j of the
source's is the tokens from j * sequence on, of which inputs are all but its last and labels all but its first; the last
token of one sample is the first of the next. So every token of an epoch is once an input and once a label. The sample in which
an epoch ends goes on with the first tokens of the next one. Documents run on across samples, eos between them.

The samples that begin in an epoch are shuffled by a permutation of their own, which is computed, not stored. From which source
global sample i comes, and which of that source's samples it is, is arithmetic too (`pipeline.tokens.mixture`). So any sample
can be had at once, whatever came before. Ranks and world size do not occur here: a rank asks for its slice of the indices.
"""

import hashlib
import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np

from pipeline.tokens.mixture import FOREVER, Mixture
from pipeline.tokens.shards import Shard

ROUNDS = 6  # of the Feistel network; 4 make a pseudo-random permutation (Luby and Rackoff 1988)
Ranges = Sequence[tuple[int, int]]  # of global samples: [first, end), ascending, apart from each other
NO_LABEL = -100  # what PyTorch's cross-entropy passes over


class Loader:
    """The samples of a run, shuffled and mixed.

    `sources`: {source: prefixes of its token shards, in a fixed order}. `shares`: {source: share}, relative to their sum, 0
    leaves a source out. `epochs`: {source: epochs}, whole or not: the source ends with the sample that has the last token of
    them, and one that is not named repeats for ever. `sequence`: tokens per sample, without the extra label. `seed`: any
    integer. `tokenizer`: where given, the digest that the shards must carry. ValueError as of `TokenStream` and `Mixture`,
    and for a share of a source that is not there.

    Attributes: `mixture`, `streams` ({source: TokenStream}, those of the mixture), `vocabulary`.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Path]],
        shares: Mapping[str, float],
        epochs: Mapping[str, float],
        sequence: int,
        seed: int,
        tokenizer: str | None = None,
    ) -> None:
        self.sequence = sequence
        self.streams: dict[str, TokenStream] = {}
        for source, share in sorted(shares.items()):
            if share > 0:
                stream = TokenStream(sources.get(source, ()), sequence, tokenizer, source)
                self.streams[source] = stream
                tokenizer = stream.vocabulary.tokenizer  # the others must have the same
        self.mixture = plan({name: stream.total for name, stream in self.streams.items()}, shares, epochs, sequence)
        self.vocabulary = next(iter(self.streams.values())).vocabulary
        self._seeded = [(stream, _source_seed(seed, source)) for source, stream in self.streams.items()]

    def batch(self, first: int, count: int, skipped: Ranges = ()) -> np.ndarray:
        """Global samples first … first + count - 1 of those that are left without `skipped` (as of `ranges_of`): int64
        [count, sequence + 1]. ValueError behind the mixture's end."""
        parts = [np.arange(*part, dtype=np.int64) for part in ranges_of(first, count, skipped)]
        source, nth = self.mixture.locate(np.concatenate(parts))
        rows = np.empty((count, self.sequence + 1), np.int64)
        for number in set(source.tolist()):
            stream, seed = self._seeded[number]
            places = np.flatnonzero(source == number)
            stream.read(_starts(nth[places], stream.total, self.sequence, seed), rows, places)
        return rows

    def counts(self, samples: int, skipped: Ranges = ()) -> dict[str, int]:
        """How many of the first `samples` (> 0) samples of those that are left without `skipped` come from each source."""
        ends = [(self.mixture.counts(first), self.mixture.counts(end)) for first, end in ranges_of(0, samples, skipped)]
        return {source: sum(after[source] - before[source] for before, after in ends) for source in self.mixture.sources}

    def batches(self, slices: Iterable[tuple[int, int]], skipped: Ranges = ()) -> Generator[np.ndarray]:
        """`batch(first, count, skipped)` of each of the slices; the next one is prepared in a thread meanwhile. Closing the
        iterator (`contextlib.closing`) ends the thread."""
        with ThreadPoolExecutor(1, "loader") as thread:
            prepared = (thread.submit(self.batch, first, count, skipped) for first, count in slices)
            for rows, _ in itertools.pairwise(itertools.chain(prepared, [None])):
                assert rows is not None
                yield rows.result()


class Validation:
    """The samples of a validation split, each once, in the order of the files: the same batches at every evaluation. The tail
    that is shorter than a sample is left out.

    `shards`: prefixes; the rest and ValueError as of `Loader`. Attributes: `samples`, `vocabulary`.
    """

    def __init__(self, shards: Sequence[Path], sequence: int, tokenizer: str | None = None) -> None:
        self._stream = TokenStream(shards, sequence, tokenizer, "validation")
        self._sequence = sequence
        self.samples = (self._stream.total - 1) // sequence
        self.vocabulary = self._stream.vocabulary

    def batch(self, first: int, count: int) -> np.ndarray:
        """Samples first … first + count - 1, as far as there are any: int64 [<= count, sequence + 1]."""
        samples = np.arange(min(first, self.samples), min(first + count, self.samples), dtype=np.int64)
        rows = np.empty((len(samples), self._sequence + 1), np.int64)
        self._stream.read(samples * self._sequence, rows, np.arange(len(samples)))
        return rows


class TokenStream:
    """The tokens of a source's shards end to end, and from the first again; memory-mapped when they are first read, so neither
    the start nor the memory depends on how many they are.

    `name` is for messages. ValueError, in one line: no shards or no tokens, fewer tokens than a sample has, shards of
    different tokenizers or of another one than `tokenizer`, a broken shard.

    Attributes: `shards`, `total` (tokens), `vocabulary`.
    """

    def __init__(self, shards: Sequence[Path], sequence: int, tokenizer: str | None, name: str) -> None:
        if sequence < 1:
            raise ValueError(f"sequence={sequence}: a sample has at least one token")
        self.shards = [Shard(Path(prefix)) for prefix in shards]
        self._ends = np.cumsum([shard.size for shard in self.shards], dtype=np.int64)
        self.total = int(self._ends[-1]) if shards else 0
        if not self.total:
            raise ValueError(f"source {name} has no tokens: tokenize it, or leave it out")
        if self.total <= sequence:
            raise ValueError(
                f"source {name} has {self.total} tokens, fewer than one sample of sequence={sequence} and its label:"
                " shorten the sequence, add text, or leave it out"
            )
        self.vocabulary = self.shards[0].vocabulary
        for shard in self.shards:
            if shard.vocabulary != self.vocabulary or shard.vocabulary.tokenizer != (tokenizer or self.vocabulary.tokenizer):
                raise ValueError(
                    f"{shard.prefix}: made with tokenizer {_short(shard.vocabulary.tokenizer)}, not with"
                    f" {_short(tokenizer or self.vocabulary.tokenizer)}: tokenize again, or give the tokenizer it was made with"
                )

    def read(self, starts: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Fills row `places[i]` of `rows` (any integer dtype, [samples, length]) with the tokens from `starts[i]` on (both
        int64 [count], 0 <= start < total)."""
        shards = np.searchsorted(self._ends, starts, side="right")
        offsets = starts - self._ends[shards]  # from the shard's end, below 0
        for place, number, offset in zip(places.tolist(), shards.tolist(), offsets.tolist(), strict=True):
            row, tokens = rows[place], self.shards[number].tokens
            piece = tokens[len(tokens) + offset : len(tokens) + offset + len(row)]
            row[: len(piece)] = piece
            filled = len(piece)
            while filled < len(row):
                number = (number + 1) % len(self.shards)
                piece = self.shards[number].tokens[: len(row) - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)


def plan(tokens: Mapping[str, int], shares: Mapping[str, float], epochs: Mapping[str, float], sequence: int) -> Mixture:
    """The mixture of sources with so many `tokens` each: what `Loader` follows, computed without a shard. `shares` and
    `epochs` as of `Loader`, ValueError as of `Mixture`, and for a share of a source that is not in `tokens`."""
    if missing := sorted(source for source, share in shares.items() if share > 0 and not tokens.get(source)):
        raise ValueError(
            f"mixture.shares: there are no tokens of {', '.join(missing)} (but of {', '.join(sorted(tokens)) or 'nothing'});"
            f" tokenize.sources names a source's files, mixture.shares.{missing[0]}=0 leaves it out"
        )
    limits = {source: -(-round(count * epochs[source]) // sequence) for source, count in tokens.items() if source in epochs}
    return Mixture(shares, limits)


def ranges_of(first: int, count: int, skipped: Ranges) -> list[tuple[int, int]]:
    """The global samples that have the numbers first … first + count - 1 (count > 0) when those in `skipped` do not count, as
    ranges."""
    parts = []
    for low, high in [*skipped, (FOREVER, FOREVER)]:
        if first < low:
            parts.append((first, min(first + count, low)))
            count -= parts[-1][1] - first
            if count == 0:
                break
            first = low
        first += high - low
    return parts


def document_boundaries(rows: np.ndarray, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """Where documents begin in samples (`rows`, int64 [count, sequence + 1]), for attention that stays within them.

    Returns documents, int32 [count, sequence]: the number of each input's document within its row, from 0, one more after each
    eos, which belongs to the document that it ends; and labels, int64 [count, sequence]: the next token, or NO_LABEL behind
    eos, where it is the first of a document that the input knows nothing of.
    """
    ends = rows[:, :-1] == eos
    documents = np.cumsum(ends, axis=1, dtype=np.int32)
    documents -= ends
    labels = rows[:, 1:].copy()
    labels[ends] = NO_LABEL
    return documents, labels


@numba.njit(cache=True)
def permute(position: np.ndarray, n: np.ndarray, seed: np.uint64, epoch: np.ndarray) -> np.ndarray:
    """Where a seeded pseudo-random permutation of 0 … n - 1, one for each epoch, takes `position`.

    `position`, `n`, `epoch`: int64 [count], 0 <= position < n < 2^62; returns int64 [count]. A Feistel network on pairs modulo
    a = ceil(sqrt(n)) permutes 0 … a² - 1; what falls on n or above goes through it again until it does not (cycle walking):
    the generalised Feistel cipher of Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """
    result = np.empty(len(position), np.int64)
    mixed = _mix(seed)
    for i in range(len(position)):
        side = np.uint64(np.sqrt(np.float64(n[i] - 1)))  # of n - 1 its root rounded down, and one more
        while side * side > np.uint64(n[i] - 1):
            side -= np.uint64(1)
        while side * side <= np.uint64(n[i] - 1):
            side += np.uint64(1)
        key = _mix(mixed + np.uint64(epoch[i]))
        x = np.uint64(position[i])
        while True:
            left, right = x // side, x % side
            for number in range(ROUNDS):
                left, right = right, (left + _mix(right + _mix(key + np.uint64(number))) % side) % side
            x = left * side + right
            if x < np.uint64(n[i]):
                break
        result[i] = np.int64(x)
    return result


def _source_seed(seed: int, source: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:8], "little"))


def _short(digest: str) -> str:
    return digest[:12]


@numba.njit(cache=True)
def _starts(nth: np.ndarray, total: int, sequence: int, seed: np.uint64) -> np.ndarray:
    """The first token, in a stream of `total`, of a source's samples number `nth` in the order of the run; int64 [count]."""
    epoch = nth * sequence // total
    first = -(-epoch * total // sequence)  # sample that begins in the epoch
    behind = -(-(epoch + 1) * total // sequence)
    return (first + permute(nth - first, behind - first, seed, epoch)) * sequence - epoch * total


@numba.njit(cache=True)
def _mix(x: np.uint64) -> np.uint64:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): a bijection in which every bit counts."""
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
