"""Perplexity buckets: a histogram of perplexities in, cut-offs and each document's bucket out.

Histograms are counts of documents by bin number, bins evenly spaced in the logarithm, so that those of many segments
are merged by adding. A cut-off is the upper edge of a bin: it is exact for the documents of the histogram to within one
bin, half a per cent of perplexity.

Source: CCNet (arXiv 1911.00359, section 3.4): the first 30 % are the head, the next 30 % the middle, the rest the tail.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

RATIO = 1.005  # between the edges of a bin
NAMES = ("head", "middle", "tail")
UNSCORED = "all"
BUCKETS = (*NAMES, UNSCORED)

# Perplexities of percentiles 30 and 60, released with CCNet; they hold for its released language models only.
# fmt: off
RELEASED = {
    "af": (540, 770), "ar": (490, 790), "az": (600, 950), "be": (670, 910), "bg": (450, 680), "bn": (190, 300),
    "ca": (210, 330), "cs": (820, 1140), "da": (380, 600), "de": (370, 590), "el": (450, 670), "en": (340, 520),
    "es": (180, 290), "et": (1270, 1620), "fa": (370, 700), "fi": (1110, 1500), "fr": (180, 330), "gu": (1110, 1570),
    "he": (1280, 1710), "hi": (480, 790), "hr": (720, 910), "hu": (80, 140), "hy": (750, 1080), "id": (600, 970),
    "is": (850, 1190), "it": (220, 360), "ja": (1110, 1450), "ka": (910, 1310), "kk": (610, 930), "km": (1040, 2180),
    "kn": (2210, 2800), "ko": (920, 2130), "lt": (190, 270), "lv": (1130, 1480), "mk": (530, 740), "ml": (2430, 3220),
    "mn": (680, 1010), "mr": (1380, 1870), "my": (2530, 3040), "ne": (860, 1130), "nl": (430, 650), "no": (430, 680),
    "pl": (160, 260), "pt": (170, 270), "ro": (180, 270), "ru": (210, 310), "uk": (140, 220), "zh": (1460, 1950),
}
# fmt: on


@dataclass(frozen=True)
class Cutoffs:
    """Where a language's head and middle end, and what that follows from.

    `documents` and `model` are how many perplexities there were and the fingerprint of the models that gave them (None where
    only the perplexities are there); both are None in CCNet's released table.
    """

    low: float
    high: float
    percentiles: tuple[float, float]
    documents: int | None
    model: str | None


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


def computed_cutoffs(histogram: Mapping[str, int], percentiles: tuple[float, float], model: str | None) -> Cutoffs:
    """The cut-offs of `cutoffs`, with what they were computed from."""
    low, high = cutoffs(histogram, percentiles)
    return Cutoffs(low, high, percentiles, sum(histogram.values()), model)


def released_cutoffs(language: str) -> Cutoffs | None:
    """CCNet's own, or None for a language that it released no model of: its documents are all in one bucket."""
    if language not in RELEASED:
        return None
    low, high = RELEASED[language]
    return Cutoffs(low, high, (30.0, 60.0), None, None)


def bucket(perplexity: float | None, cut: tuple[float, float] | None) -> str:
    """head, middle or tail by the cut-offs (`<`, as CCNet); all where there is no model."""
    if perplexity is None or cut is None:
        return UNSCORED
    return NAMES[0] if perplexity < cut[0] else NAMES[1] if perplexity < cut[1] else NAMES[2]
