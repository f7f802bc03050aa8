"""Statistics of units: what a step took out, counted by reason; histograms; and all of them merged by addition.

In: pages and documents, batch by batch. Out: nested dictionaries of numbers (JSON), one for each unit. Those of a crawl
are the sum of its units' (`merge`), in any order.
"""

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
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"largest": dict(ordered[:number]), "others": ordered[number][1] if len(ordered) > number else 0}


def total(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of a step over all its units: `merge`, the domains cut to the largest again.

    While units are added, no more than some MANY_DOMAINS domains are held: each cut adds to `others` what it may cost.
    """
    merged: dict[str, Any] = {}
    for record in records:
        _add(merged, record)
        _cut_domains(merged, MANY_DOMAINS, MANY_DOMAINS // 2)
    _cut_domains(merged, TOP_DOMAINS, TOP_DOMAINS)
    return merged


def _cut_domains(statistics: dict[str, Any], limit: int, number: int) -> None:
    for name, counts in statistics.get("domains", {}).items():
        if len(counts["largest"]) > limit:
            cut = top(counts["largest"], number)
            statistics["domains"][name] = cut | {"others": cut["others"] + counts["others"]}


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
    for key, value in record.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        elif isinstance(value, list):
            before = total.get(key, [0] * len(value))
            assert len(before) == len(value), (len(before), len(value))
            total[key] = [a + b for a, b in zip(before, value, strict=True)]
        else:
            total[key] = total.get(key, 0) + value
