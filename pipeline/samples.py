"""Pages to look at: a finished run in, a few pages of each outcome out, the same ones for the same seed.

A page's group is its outcome, language and bucket (`pipeline.page_road`). Which pages of a group are taken follows from a
hash of the seed and the page, so the samples of several segments are merged by taking the lowest hashes again.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.page_road import FinishedRun, First, Line, Page, segment_pages

SEGMENTS = 8  # that are read again for samples
LINES, CHARS = 60, 600  # of a page, and of a line, that are kept
BEYOND = "beyond"


def chosen_segments(run: FinishedRun, seed: int) -> list[int]:
    """The numbers of the segments that samples are taken from, in crawl order."""
    ranked = sorted(range(len(run.segments)), key=lambda number: rank(seed, run.segments[number]["name"]))
    return sorted(ranked[:SEGMENTS])


def rank(seed: int, *names: str) -> str:
    """A hash by which things are put in an order that only the seed decides."""
    return hashlib.sha256("\0".join([str(seed), *names]).encode(errors="surrogatepass")).hexdigest()


def sample_segment(run: FinishedRun, number: int, samples: int, seed: int) -> list[tuple[str, Page]]:
    """(rank, page) of up to `samples` pages of each group of a segment: those of the lowest rank."""
    groups: dict[Any, list[tuple[int, int, Page]]] = {}  # heaps, the highest rank first
    for seen in segment_pages(run, number):
        value = rank(seed, run.segments[number]["name"], str(seen.number))
        heap = groups.setdefault(group(seen.outcome, *seen.group[1:]), [])
        entry = (-int(value, 16), seen.number)
        if len(heap) < samples:
            heapq.heappush(heap, (*entry, seen.page()))
        elif entry > heap[0][:2]:
            heapq.heapreplace(heap, (*entry, seen.page()))
    return [(f"{-minus:064x}", page) for heap in groups.values() for minus, _, page in heap]


def group(outcome: str, language: str | None, bucket: str | None) -> tuple[str, str, str]:
    """What samples are taken of: a language and bucket of the corpus, or a reason to be dropped."""
    return (outcome, language or "", bucket or "") if outcome in ("corpus", "mined") else (outcome, "", "")


def merge_samples(samples: Iterable[tuple[str, Page]], number: int) -> dict[tuple[str, str, str], list[Page]]:
    """{group: its `number` pages of the lowest rank} from those of several segments."""
    groups: dict[tuple[str, str, str], list[Page]] = {}
    for _, page in sorted(samples, key=lambda sample: sample[0]):
        pages = groups.setdefault(group(page.outcome, page.language, page.bucket), [])
        if len(pages) < number:
            pages.append(page)
    return groups


def excerpt(page: Page) -> Page:
    """The page with no more than LINES lines, and CHARS characters of each; what is missing is said in words."""
    lines = [dataclasses.replace(line, text=_cut(line.text)) for line in page.lines[:LINES]]
    if (left := len(page.lines) - LINES) > 0:
        lines.append(Line(f"… {left:,} more lines", 0, BEYOND))
    return dataclasses.replace(page, title=_cut(page.title), lines=lines)


def _cut(text: str) -> str:
    return text if len(text) <= CHARS else f"{text[:CHARS]}… ({len(text) - CHARS:,} more characters)"


def page_from_json(stored: dict[str, Any]) -> Page:
    """A page from what `dataclasses.asdict` made of it, by way of JSON."""
    lines = [Line(**line | {"first": First(**line["first"]) if line["first"] else None}) for line in stored["lines"]]
    return Page(**stored | {"steps": [tuple(step) for step in stored["steps"]], "lines": lines})


def pages_to_json(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """Pages as JSON has them."""
    return [dataclasses.asdict(page) for page in pages]
