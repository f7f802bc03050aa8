"""What tests of sources share: reading a file with a source, and files as they are published."""

from collections import Counter
from pathlib import Path

from pipeline.config import SourcesConfig
from pipeline.sources import Given, sources


def read(source: str, path: Path | str, part=None, **settings):
    """(documents, {count: number}) of a file."""
    counts = Counter()
    given = Given(str(path), part, SourcesConfig(**settings), Path("."))
    documents = list(sources()[source].read(given, counts))
    return documents, {name: number for name, number in counts.items() if number}
