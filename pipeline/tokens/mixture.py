"""The mixture: sources with shares in; for every sample of the run its source, and which of that source's samples it is, out.

Pure arithmetic of the sample index. Shares are rounded to multiples of 1 / CYCLE, and a table says from which source each
sample of a cycle comes; cycles repeat. The table is Tijdeman's (The chairman assignment problem, Discrete Mathematics 32,
1980): with S sources, after any number of samples each source's count differs from its share by at most 1 - 1 / (2 S - 2).
So in any window of samples it differs by less than 2, and with the rounding still does for windows of 1,000 samples
and MAX_SOURCES sources.

A source with a limit of epochs ends after the last sample that lies within them. From the next sample on, its share goes to
the others in proportion to theirs: another stretch begins, with a table of its own. A window across such a change is within
3. The mixture ends with its last source; a source without a limit repeats for ever.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numba
import numpy as np

CYCLE = 1 << 16  # samples
MAX_SOURCES = 32
FOREVER = 1 << 62  # samples; more than any run takes


class Stretch(NamedTuple):
    """Samples with constant shares, from global sample `start` on."""

    start: int
    used: np.ndarray  # int64 [sources]: samples of each source before `start`
    weights: np.ndarray  # int64 [sources]: samples of each source in a cycle
    table: np.ndarray  # int8 [CYCLE]: the source of each sample of a cycle
    ranks: np.ndarray  # int32 [CYCLE]: how many samples of the same source are before it in the cycle


class Mixture:
    """Which source a sample of the run comes from.

    `shares`: {source: share}, any numbers from 0, relative to their sum; a share of 0 leaves the source out. `limits`:
    {source: samples} after which a source ends; one that is not named repeats for ever. The order of both does not matter.
    ValueError for no share above 0, a share below 1 / CYCLE, more than MAX_SOURCES sources, and a source that ends before its
    first sample.

    Attributes: `sources` (names, sorted), `shares` (of their sum), `samples` (after which all have ended; FOREVER without
    limits), `ends` ({source: global sample from which it is no longer there}).
    """

    def __init__(self, shares: Mapping[str, float], limits: Mapping[str, int]) -> None:
        self.sources = sorted(source for source, share in shares.items() if share > 0)
        if not self.sources:
            raise ValueError("mixture.shares: no source has a share above 0")
        if len(self.sources) > MAX_SOURCES:
            raise ValueError(f"mixture.shares: {len(self.sources)} sources; at most {MAX_SOURCES} can be mixed")
        wanted = np.array([shares[source] for source in self.sources])
        if wanted.min() * CYCLE < wanted.sum():
            least = self.sources[wanted.argmin()]
            raise ValueError(f"mixture.shares: {least} has less than 1/{CYCLE} of the whole: raise it, or leave it out with 0")
        left = np.array([limits.get(source, FOREVER) for source in self.sources])
        if not left.all():
            raise ValueError(f"mixture: source {self.sources[left.argmin()]} ends before its first sample")
        self.shares = dict(zip(self.sources, (wanted / wanted.sum()).tolist(), strict=True))
        self.ends: dict[str, int] = {}
        self._stretches: list[Stretch] = []
        self.samples, used = 0, np.zeros(len(wanted), np.int64)
        while (used < left).any():
            weights = _rounded(np.where(used < left, wanted, 0))
            table, ranks = _schedule(weights)
            stretch = Stretch(self.samples, used, weights, table, ranks)
            self._stretches.append(stretch)
            lasting = {k: _length(stretch, k, int(left[k] - used[k])) for k in np.flatnonzero(weights).tolist()}
            ending = min(lasting, key=lambda k: lasting[k])
            self.samples += lasting[ending]
            if left[ending] == FOREVER:
                self.samples = FOREVER
                break
            used = self._counts(stretch, self.samples)
            self.ends[self.sources[ending]] = self.samples
        self._starts = np.array([stretch.start for stretch in self._stretches])

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of global samples `indices` (int64 [count]): the number of the source in `sources`, and how many samples of that
        source come before it in the run; both int64 [count]. ValueError for a sample behind the mixture's end."""
        if len(indices) and indices.max() >= self.samples:
            ends = ", ".join(f"{source} at sample {end:,}" for source, end in self.ends.items())
            raise ValueError(f"the mixture ends after {self.samples:,} samples ({ends}): raise mixture.epochs, or train less")
        source, nth = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        at = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(at).tolist():
            here, stretch = at == number, self._stretches[number]
            cycle, place = np.divmod(indices[here] - stretch.start, CYCLE)
            chosen = stretch.table[place]
            source[here] = chosen
            nth[here] = stretch.used[chosen] + cycle * stretch.weights[chosen] + stretch.ranks[place]
        return source, nth

    def counts(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples come from each source; `samples` is at most those of the mixture."""
        stretch = self._stretches[int(np.searchsorted(self._starts, samples, side="right")) - 1]
        return dict(zip(self.sources, self._counts(stretch, samples).tolist(), strict=True))

    def _counts(self, stretch: Stretch, samples: int) -> np.ndarray:
        cycles, rest = divmod(samples - stretch.start, CYCLE)
        return stretch.used + cycles * stretch.weights + np.bincount(stretch.table[:rest], minlength=len(self.sources))


def _rounded(shares: np.ndarray) -> np.ndarray:
    """Samples of a cycle for each source, CYCLE in all: int64 [sources]; what rounding down leaves goes where most was lost."""
    exact = shares / shares.sum() * CYCLE
    weights = np.floor(exact).astype(np.int64)
    weights[np.argsort(weights - exact, kind="stable")[: CYCLE - weights.sum()]] += 1
    return weights


def _length(stretch: Stretch, source: int, samples: int) -> int:
    """Samples of the stretch until the source has had `samples` of its own."""
    if samples > FOREVER // CYCLE:
        return FOREVER
    cycles, place = divmod(samples - 1, int(stretch.weights[source]))
    return cycles * CYCLE + int(np.flatnonzero(stretch.table == source)[place]) + 1


@numba.njit(cache=True)
def _schedule(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tijdeman's assignment of a cycle: its table and ranks as of `Stretch`.

    At each sample, of the sources that are behind their share by at least 1 / (2 S - 2), it takes the one that would first
    be behind by more than 1 - 1 / (2 S - 2). Deviations are counted in units of 1 / (CYCLE (2 S - 2)), so they are exact.
    """
    sources = np.flatnonzero(weights)
    table, ranks = np.empty(CYCLE, np.int8), np.empty(CYCLE, np.int32)
    unit = max(1, 2 * len(sources) - 2)
    taken = np.zeros(len(weights), np.int64)
    for sample in range(CYCLE):
        best, best_room = -1, 0
        for source in sources:
            behind = unit * (weights[source] * (sample + 1) - CYCLE * taken[source])
            if behind >= CYCLE:
                room = (unit - 1) * CYCLE - behind
                if best < 0 or room * weights[best] < best_room * weights[source]:
                    best, best_room = source, room
        table[sample], ranks[sample] = best, taken[best]
        taken[best] += 1
    return table, ranks
