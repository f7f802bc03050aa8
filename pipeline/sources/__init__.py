"""LLaMA's sources beside the crawl, each in the form in which it is published; what each module offers the stage.

A module reads one file, or a part of one (`Given`), and yields `Document`s; what it passes over without a text and what is
broken it counts by reason. `SOURCES` names them all.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ccnet.parts import split
from pipeline.config import SourcesConfig
from pipeline.sources.documents import Document

Part = tuple[int, int]


class Given(NamedTuple):
    """What a source reads: a path or URL, or a part of it; its settings; a folder for temporary files."""

    path: str
    part: Part | None
    settings: SourcesConfig
    temporary: Path


@dataclass(frozen=True)
class Source:
    """A source's module, as the stage sees it.

    `read(given, counts)`: its documents in their order; `counts` is added to: `dropped_{reason}` (documents that were
    passed over without their text: those with a text are yielded with `dropped`) and `bad_{reason}`. Raises nothing for what
    is in a file; OSError where it cannot be read, ValueError for a user's mistake.

    `parts(path, bytes)`: a local file's parts, of about so many bytes, that several workers may read; None: never cut.
    `files(name)`: paths that a name in `sources.files` stands for; None: `expand_files`. `prints(path)`: (bytes, fingerprint)
    of one of them; None: `pipeline.stage.fingerprint`.
    `duplicates`: over all its files, documents are dropped whose text an earlier one has (`exact`), or nearly so (`near`).
    """

    read: Callable[[Given, Counter[str]], Iterator[Document]]
    parts: Callable[[str, int], Sequence[Part]] | None = None
    files: Callable[[str], Sequence[str]] | None = None
    prints: Callable[[str], tuple[int, str]] | None = None
    duplicates: Literal["exact", "near"] | None = None


def sources() -> dict[str, Source]:
    """Every source by its name, which is that of `mixture.shares`."""
    from pipeline.sources import arxiv, books, c4, github, stackexchange, wikipedia

    return {
        "c4": Source(c4.documents, split, c4.files, c4.prints),
        "wikipedia": Source(wikipedia.documents, wikipedia.parts),
        "github": Source(github.documents, split, github.files, github.prints, duplicates="exact"),
        "books": Source(books.documents, files=books.files, duplicates="near"),
        "arxiv": Source(arxiv.documents),
        "stackexchange": Source(stackexchange.documents, files=stackexchange.files),
    }
