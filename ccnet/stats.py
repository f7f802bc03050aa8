"""Statistics of units: what a step took out, counted by reason; histograms; and all of them merged by addition.

In: pages and documents, batch by batch. Out: nested dictionaries of numbers (JSON), one for each unit. Those of a crawl
are the sum of its units' (`merge`), in any order.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccnet.buckets import bin_of

MEASURES = ("documents", "chars", "lines")
TOP_DOMAINS = 200
MANY_DOMAINS = 200_000


@dataclass
class Tally:
    """What came into a step, what it kept, and what it dropped by reason.

    Lines and characters are those of raw_content, LF between lines being a character. Documents, characters and lines
    alike: in = kept + the sum over all reasons. `read` has the counts of `ccnet.wet.read_pages`.
    """

    read: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in MEASURES})
    domains: dict[str, Counter[str]] = field(default_factory=lambda: {"kept": Counter(), "dropped": Counter()})

    def add(self, name: str, documents: int, chars: int, lines: int) -> None:
        """Counts under `in`, `kept`, or a reason to be dropped."""
        for measure, count in zip(MEASURES, (documents, chars, lines), strict=True):
            self.counts[measure][name] += int(count)

    def keep(self, documents: pa.Table | pa.RecordBatch) -> None:
        """Counts documents (`ccnet.schema.SCORED`) as kept."""
        sizes = (pc.sum(documents.column(name)).as_py() or 0 for name in ("length", "nlines"))
        self.add("kept", len(documents), *sizes)
        self.domains["kept"].update(documents.column("source_domain").to_pylist())

    def statistics(self) -> dict[str, Any]:
        """{documents, chars, lines: {in, kept, dropped: {reason: n}}, domains: {kept, dropped: `top`}, bad: {reason: n}}."""
        result: dict[str, Any] = {}
        for measure, counts in self.counts.items():
            dropped = {reason: n for reason, n in sorted(counts.items()) if reason not in ("in", "kept")}
            result[measure] = {"in": counts["in"], "kept": counts["kept"], "dropped": dropped}
        result["domains"] = {name: top(counts, TOP_DOMAINS) for name, counts in self.domains.items()}
        result["bad"] = {k.removeprefix("bad_"): n for k, n in sorted(self.read.items()) if k.startswith("bad_")}
        return result


def top(counts: Mapping[str, int], number: int) -> dict[str, Any]:
    """The largest counts, and how much any other one may be: {"largest": {name: n}, "others": n}.

    Equal counts are taken in the order of the names. Added over units (`merge`), the count of a name lies between its sum
    in `largest` (0 where it is missing) and that sum plus `others`.
    """
    ordered = heapq.nsmallest(number + 1, counts.items(), key=lambda item: (-item[1], item[0]))
    return {"largest": dict(ordered[:number]), "others": ordered[number][1] if len(ordered) > number else 0}


class Total:
    """The statistics of a step, added unit by unit: `merge` in bounded memory.

    No more than MANY_DOMAINS domains of each kind are held: where there are more, the larger half stays, and `others` grows
    by the most that one of those let go has. So the bounds of `top` hold whatever was cut.
    """

    def __init__(self) -> None:
        self._merged: dict[str, Any] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the statistics of a unit, and shares nothing with them."""
        _add(self._merged, record)
        for counts in self._merged.get("domains", {}).values():
            if len(counts["largest"]) > MANY_DOMAINS:
                counts["largest"], most = _heaviest(counts["largest"], MANY_DOMAINS // 2)
                counts["others"] += most

    def statistics(self) -> dict[str, Any]:
        """The sum so far, its domains cut to the largest; more may be added to it after."""
        result = merge([{name: value for name, value in self._merged.items() if name != "domains"}])
        if "domains" in self._merged:
            result["domains"] = {}
            for name, counts in self._merged["domains"].items():
                cut = top(counts["largest"], TOP_DOMAINS)
                result["domains"][name] = cut | {"others": cut["others"] + counts["others"]}
        return result


def total(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of a step over all its units (`Total`), the domains cut to the largest again."""
    added = Total()
    for record in records:
        added.add(record)
    return added.statistics()


def _heaviest(counts: Mapping[str, int], number: int) -> tuple[dict[str, int], int]:
    """`number` of the largest counts, of equal ones those that came first, and the largest of all others."""
    values = np.fromiter(counts.values(), np.int64, len(counts))
    most = int(np.partition(values, -number - 1)[-number - 1])
    stay = values > most
    stay[np.flatnonzero(values == most)[: number - np.count_nonzero(stay)]] = True
    return dict(itertools.compress(counts.items(), stay.tolist())), most


def by_language(documents: pa.Table) -> dict[str, dict[str, Any]]:
    """Counts and histograms of the documents (`ccnet.schema.SCORED`) of each language.

    `languages`: {language: {documents, chars}}. Histograms, {language: {bin: documents}} with bins as text in ascending
    order: `language_score` in hundredths, `length` by the floor of log2 of the characters, `perplexity` by the bins of
    `ccnet.buckets`.
    """
    result: dict[str, dict[str, Any]] = {name: {} for name in ("languages", "language_score", "length", "perplexity")}
    documents = documents.select(["language", "length", "language_score", "perplexity"])
    for language in sorted(pc.unique(documents.column("language")).to_pylist()):
        chosen = documents.filter(pc.equal(documents.column("language"), language))
        length, score = chosen.column("length").to_numpy(), chosen.column("language_score").to_numpy()
        result["languages"][language] = {"documents": len(chosen), "chars": int(length.sum())}
        result["language_score"][language] = _histogram(np.rint(score * 100).astype(np.int64))
        result["length"][language] = _histogram(np.frexp(np.maximum(length, 1))[1] - 1)
        perplexities = chosen.column("perplexity").drop_null().to_pylist()
        if perplexities:
            result["perplexity"][language] = _histogram(np.array([bin_of(p) for p in perplexities]))
    return result


def _histogram(values: np.ndarray) -> dict[str, int]:
    unique, counts = np.unique(values, return_counts=True)
    return {str(value): int(count) for value, count in zip(unique, counts, strict=True)}


def chain(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two steps as one: {documents, chars, lines: {in: of the first, kept: of the second, dropped: of both}}."""
    return {
        measure: {
            "in": first[measure]["in"],
            "kept": second[measure]["kept"],
            "dropped": merge([first[measure]["dropped"], second[measure]["dropped"]]),
        }
        for measure in MEASURES
    }


def excess(statistics: Mapping[str, Any], limit: float, chosen: Iterable[str]) -> str | None:
    """What a step removed, in words, if that is more than `limit` of the characters; else None.

    What goes for one of the `chosen` reasons, because the user named what to keep, is no part of the step.
    """
    counts = statistics["chars"]
    removed = {reason: n for reason, n in counts["dropped"].items() if reason not in chosen and n}
    total = counts["kept"] + sum(removed.values())
    if sum(removed.values()) <= limit * total:
        return None
    reasons = ", ".join(f"{reason} {n / total:.1%}" for reason, n in sorted(removed.items(), key=lambda item: -item[1]))
    return f"{sum(removed.values()) / total:.1%} of {total} characters ({reasons})"


def merge(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds nested dictionaries of numbers key by key; lists of numbers are added element by element."""
    total: dict[str, Any] = {}
    for record in records:
        _add(total, record)
    return total


def _add(total: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Adds to `total` in place, which shares nothing with the record."""
    known = total.get
    for key, value in record.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        elif isinstance(value, list):
            before = known(key, [0] * len(value))
            assert len(before) == len(value), (len(before), len(value))
            total[key] = [a + b for a, b in zip(before, value, strict=True)]
        else:
            total[key] = known(key, 0) + value
