"""Wikipedia's `pages-articles*.xml.bz2` (multistream too) in, the plain text of its articles out (`ccnet.wikipedia`)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from ccnet.wikipedia import read_articles, stream_parts
from pipeline.sources.documents import Document

if TYPE_CHECKING:
    from pipeline.sources import Given


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """The articles, in the dump's order: no redirects, no disambiguations, nothing outside the main namespace.

    `counts` is added to: `dropped_redirect`, `dropped_namespace`,
    `dropped_disambiguation`, `dropped_empty`, and the faults of `ccnet.wikipedia.read_articles`.
    """
    seen = Counter[str]()
    try:
        for article in read_articles(given.path, seen, part=given.part, disambiguations=False):
            url = article.url or f"https://{article.language}.wikipedia.org/wiki/{quote(article.title.replace(' ', '_'))}"
            yield Document(url, article.date, article.title, article.text, article.language)
    finally:
        counts.update({name.replace("skipped_", "dropped_"): n for name, n in seen.items() if name != "articles_read"})


def parts(path: str, split_bytes: int) -> Sequence[tuple[int, int]]:
    """Those of a multistream dump, cut between its streams; one of any other."""
    return stream_parts(path, split_bytes)
