"""Perplexity buckets: a histogram of perplexities in, cut-offs and each document's bucket out.

Histograms are counts of documents by bin number, bins evenly spaced in the logarithm, so that those of many segments
are merged by adding. A cut-off is the upper edge of a bin: it is exact for the documents of the histogram to within one
bin, half a per cent of perplexity.

Source: CCNet (arXiv 1911.00359, section 3.4): the first 30 % are the head, the next 30 % the middle, the rest the tail.
"""

import math
from collections.abc import Mapping

RATIO = 1.005  # between the edges of a bin
NAMES = ("head", "middle", "tail")
UNSCORED = "all"


def bin_of(perplexity: float) -> int:
    """The number of the bin of a perplexity. Bin 0 also has those below 1, which no model of probabilities gives."""
    return math.floor(math.log(max(perplexity, 1.0)) / math.log(RATIO))


def bin_edges(number: int) -> tuple[float, float]:
    """Lower and upper edge of a bin."""
    return RATIO**number, RATIO ** (number + 1)


def cutoffs(histogram: Mapping[str, int], percentiles: tuple[float, float] = (30.0, 60.0)) -> tuple[float, float]:
    """The perplexities below which at least the given shares of the documents lie, rounded to the next bin's edge.

    `histogram` maps bin numbers (as text, as JSON has them) to counts. Raises ValueError if it is empty.
    """
    total = sum(histogram.values())
    if not total:
        raise ValueError("no perplexities to compute cut-offs from")
    edges = []
    counts = sorted((int(number), count) for number, count in histogram.items())
    for percentile in percentiles:
        seen = 0
        for number, count in counts:
            seen += count
            if seen * 100 >= percentile * total:
                edges.append(bin_edges(number)[1])
                break
    return edges[0], edges[1]


def bucket(perplexity: float | None, cut: tuple[float, float] | None) -> str:
    """head, middle or tail by the cut-offs (`<`, as CCNet); all where there is no model."""
    if perplexity is None or cut is None:
        return UNSCORED
    return NAMES[0] if perplexity < cut[0] else NAMES[1] if perplexity < cut[1] else NAMES[2]
