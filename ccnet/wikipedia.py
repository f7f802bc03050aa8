"""A Wikipedia dump in (pages-articles XML, or CirrusSearch's JSON), the plain text of its articles out.

Follows MediaWiki's export format (https://www.mediawiki.org/xml/export-0.11.xsd), of which a page's title, namespace,
redirect and last revision are read, and Elasticsearch's bulk format, an index line before each document line.
"""

import bz2
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import DEFAULT_BUFFER_SIZE, BufferedReader, RawIOBase
from typing import Any, cast
from xml.parsers import expat

import fsspec

from ccnet.wikitext import MEDIA_NAMESPACES, opening, plain_text

CHUNK = 1 << 18  # bytes that are parsed at a time
MAX_PAGE = 16 << 20  # characters of a page, and bytes of a piece of markup; MediaWiki itself allows 2 MiB of wikitext
MAX_LINE = 64 << 20  # bytes of a JSON document
MAX_DEPTH = 32  # of elements in each other; a dump has 6
MEDIA_KEYS = ("-2", "6", "14")  # of the namespaces Media, File and Category in the dump's <siteinfo>

# Content languages whose code is not the name that fastText's lid.176 gives to the language.
FASTTEXT_NAMES = {"nb": "no", "gsw": "als", "cbk-x-zam": "cbk", "egl": "eml", "bho": "bh", "zh-yue": "yue"}
Buffered = BufferedReader | gzip.GzipFile
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")


@dataclass(frozen=True)
class Article:
    """An article: the language as fastText names it, the title, and lines of plain text."""

    language: str
    title: str
    text: str


class BadFile(Exception):
    """A file can't be read any further; the message is the reason under which it is counted."""


def read_articles(source: str, counts: Counter[str], *, openings: bool = False) -> Iterator[Article]:
    """The articles of a dump, in its order: pages of the main namespace that are no redirects.

    XML or JSON, plain, gzip or bzip2 (of several streams as well): told by the file's first bytes. Memory: a few pages,
    whatever the file.

    Args:
        source: path or fsspec URL.
        counts: added to: `articles_read`, `skipped_redirect`, `skipped_namespace`, `skipped_empty` (no text is left), and
            faults: `bad_too_large` (the page is left out), `bad_record` (a JSON line that is no page, left out), and what
            ends a file before its end: `bad_not_a_dump`, `bad_language` (none is named, or it is no language code),
            `bad_doctype` (dumps have none; entities can be bombs), `bad_broken_xml`, `bad_truncated`, `bad_compression`.
        openings: only what stands before the first heading.
    Raises: OSError where the source cannot be opened or read. Nothing for what is in it.
    """
    try:
        with open_compressed(source) as file:
            first = file.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
            read = _read_json if first.startswith(b"{") else _read_xml
            for article in read(file, counts, openings):
                if article.text:
                    counts["articles_read"] += 1
                    yield article
                else:
                    counts["skipped_empty"] += 1
    except BadFile as fault:
        counts[f"bad_{fault}"] += 1


def read_wikitexts(source: str, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """(language, wikitext) of the articles of a dump in XML; what is read, left out and counted is as in `read_articles`."""
    try:
        with open_compressed(source) as file:
            for pages, _, wikitext in _xml_pages(file, counts):
                counts["articles_read"] += 1
                yield pages.language, wikitext
    except BadFile as fault:
        counts[f"bad_{fault}"] += 1


@contextmanager
def open_compressed(source: str) -> Iterator[Buffered]:
    """A file's bytes, decompressed where the first ones are those of gzip or bzip2.

    Raises BadFile(`truncated` or `compression`) out of the block that reads it where decompression fails.
    """
    with fsspec.open(source, "rb") as raw:
        file: Buffered = BufferedReader(raw)
        start = file.peek(3)
        if start.startswith(b"BZh"):
            file = BufferedReader(cast(Any, _Bzip2(file)), CHUNK)
        elif start.startswith(b"\x1f\x8b"):
            file = gzip.GzipFile(fileobj=file)
        try:
            yield file
        except EOFError:
            raise BadFile("truncated") from None
        except (OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # those of bz2 and gzip have no number
                raise
            raise BadFile("compression") from None


class _Bzip2(RawIOBase):
    """Streams of bzip2, end to end. `bz2.BZ2File` takes a broken one that follows a whole one for the end of the file."""

    def __init__(self, file: Buffered) -> None:
        self._file = file
        self._stream = bz2.BZ2Decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            more = b""
            if self._stream.eof:
                more = self._stream.unused_data or self._file.read(DEFAULT_BUFFER_SIZE)
                if not more:
                    return 0
                self._stream = bz2.BZ2Decompressor()
            elif self._stream.needs_input and not (more := self._file.read(DEFAULT_BUFFER_SIZE)):
                raise EOFError
            data = self._stream.decompress(more, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def language_name(code: str | None) -> str:
    """fastText's name for the content language of a wiki. Raises BadFile where it is no language code."""
    code = (code or "").lower()
    if not LANGUAGE.fullmatch(code):
        raise BadFile("language")
    return FASTTEXT_NAMES.get(code, code)


def _read_json(file: Buffered, counts: Counter[str], openings: bool) -> Iterator[Article]:
    while line := file.readline(MAX_LINE):
        if not line.endswith(b"\n") and len(line) == MAX_LINE:
            counts["bad_too_large"] += 1
            while (line := file.readline(CHUNK)) and not line.endswith(b"\n"):
                pass
            continue
        if not line.strip():
            continue
        try:
            page = json.loads(line)
            if set(page) == {"index"}:
                continue
            title, text = page["title"], page.get("opening_text" if openings else "text") or ""
            if not isinstance(title, str) or not isinstance(text, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            counts["bad_record"] += 1
            continue
        if page.get("namespace", 0) != 0:
            counts["skipped_namespace"] += 1
            continue
        text = text.encode(errors="replace").decode()  # JSON can name halves of surrogate pairs
        lines = [" ".join(line.split()) for line in text.split("\n")]
        yield Article(
            language_name(page.get("language")), title.encode(errors="replace").decode(), "\n".join(filter(None, lines))
        )


def _read_xml(file: Buffered, counts: Counter[str], openings: bool) -> Iterator[Article]:
    for pages, title, wikitext in _xml_pages(file, counts):
        text = plain_text(opening(wikitext) if openings else wikitext, pages.media)
        yield Article(pages.language, title, text)


def _xml_pages(file: Buffered, counts: Counter[str]) -> Iterator[tuple["_Pages", str, str]]:
    """(the dump so far, title, wikitext) of each article."""
    pages = _Pages(counts)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = pages.start
    parser.EndElementHandler = pages.end
    parser.CharacterDataHandler = pages.data
    parser.StartDoctypeDeclHandler = pages.doctype
    size = 0
    while True:
        chunk = file.read1(CHUNK)  # `read` would lose what comes before a fault
        size += len(chunk)
        fault = None
        try:
            parser.Parse(chunk, not chunk)
        except BadFile as error:
            fault = error
        except (expat.ExpatError, LookupError, ValueError):  # the latter two for unknown encodings
            fault = BadFile(("broken_xml" if chunk else "truncated") if pages.language else "not_a_dump")
        ready, pages.ready = pages.ready, []
        for title, wikitext in ready:
            yield pages, title, wikitext
        if fault:
            raise fault
        if not chunk:
            return
        if size - parser.CurrentByteIndex > MAX_PAGE:  # a tag or comment without an end
            raise BadFile("broken_xml")


class _Pages:
    """Expat's handlers: elements in, (title, wikitext) of articles out in `ready`."""

    def __init__(self, counts: Counter[str]) -> None:
        self.language = ""
        self.media = set(MEDIA_NAMESPACES)
        self.ready: list[tuple[str, str]] = []
        self._counts = counts
        self._open: list[str] = []
        self._page = {"title": "", "ns": "", "text": ""}
        self._redirect = self._too_large = False
        self._parts: list[str] | None = None  # of the element whose text is wanted
        self._size = 0

    def doctype(self, *_: object) -> None:
        raise BadFile("doctype")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open:
            if name != "mediawiki":
                raise BadFile("not_a_dump")
            self.language = language_name(attributes.get("xml:lang"))
        self._open.append(name)
        if len(self._open) > MAX_DEPTH:
            raise BadFile("broken_xml")
        match self._open[1:]:
            case ["page"]:
                self._page = {"title": "", "ns": "", "text": ""}
                self._redirect = self._too_large = False
            case ["page", "redirect"]:
                self._redirect = True
            case ["page", "title" | "ns"] | ["page", "revision", "text"]:
                self._parts, self._size = [], 0
            case ["siteinfo", "namespaces", "namespace"] if attributes.get("key") in MEDIA_KEYS:
                self._parts, self._size = [], 0

    def data(self, text: str) -> None:
        if self._parts is not None:
            self._size += len(text)
            if self._size <= MAX_PAGE:
                self._parts.append(text)
            else:
                self._too_large = True

    def end(self, name: str) -> None:
        self._open.pop()
        if self._parts is not None:
            text, self._parts = "".join(self._parts), None
            if name == "namespace":
                self.media.add(text.lower())
            else:
                self._page[name] = text
        elif name == "page" and len(self._open) == 1:
            if self._too_large:
                self._counts["bad_too_large"] += 1
            elif self._page["ns"].strip() != "0":
                self._counts["skipped_namespace"] += 1
            elif self._redirect:
                self._counts["skipped_redirect"] += 1
            else:
                self.ready.append((self._page["title"], self._page["text"]))
