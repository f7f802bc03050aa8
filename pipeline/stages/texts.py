"""The texts that become tokens: the corpus, as the source `crawl`, what `sources` wrote, the files of `tokenize.sources`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.sources.documents import UNTOLD
from pipeline.stage import Stage, StageError, expand_files, fingerprint

CRAWL = "crawl"


class TextFile(NamedTuple):
    """A file of a source: its name there (unlike all others), its path or URL and fingerprint, its language, its bucket."""

    source: str
    name: str
    path: str
    fingerprint: str
    language: str
    bucket: str | None


def text_files(stage: Stage) -> Iterator[TextFile]:
    """Every file: those of the corpus in `tokenize.buckets`, by language and bucket, those of the stage `sources` where
    `sources.files` names any, and those of `tokenize.sources`."""
    for part in _chosen_parts(stage):
        name = part["path"].removeprefix("corpus/").partition(".")[0].replace("/", "-")
        yield TextFile(CRAWL, name, str(stage.out / part["path"]), part["digest"], part["language"], part["bucket"])
    if stage.config.sources.files:
        for part in stage.upstream("sources")["result"]["parts"]:
            name = part["path"].rpartition("/")[2].partition(".")[0]
            yield TextFile(part["source"], name, str(stage.out / part["path"]), part["digest"], part["language"], None)
    for source, patterns in stage.config.tokenize.sources.items():
        for number, path in enumerate(expand_files(patterns)):
            yield TextFile(source, f"{number:05d}", path, fingerprint(path)[1], UNTOLD, None)


def _chosen_parts(stage: Stage) -> list[dict[str, Any]]:
    buckets = stage.config.tokenize.buckets
    parts = [part for part in stage.upstream("regroup")["result"]["parts"] if part["bucket"] in buckets]
    if not parts:
        raise StageError(f"{stage.spec.name}: the corpus has no document in tokenize.buckets={buckets}")
    return parts
