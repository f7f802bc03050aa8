"""A Wikipedia dump in (pages-articles XML, or CirrusSearch's JSON), the plain text of its articles out.

Follows MediaWiki's export format (https://www.mediawiki.org/xml/export-0.11.xsd), of which a page's title, namespace,
redirect and last revision with its date are read, and Elasticsearch's bulk format, an index line before each document line.
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
from typing import Any, BinaryIO, cast
from urllib.parse import quote
from xml.parsers import expat

import fsspec

from ccnet.crawl import byte_range
from ccnet.wikitext import MEDIA_NAMESPACES, opening, plain_text

CHUNK = 1 << 18  # bytes that are parsed at a time
MAX_PAGE = 16 << 20  # characters of a page, and bytes of a piece of markup; MediaWiki itself allows 2 MiB of wikitext
MAX_LINE = 64 << 20  # bytes of a JSON document
MAX_RATIO = 100  # of a file's bytes to those it is compressed to; of dumps 3 to 15
BEFORE_RATIO = 64 << 20  # bytes that are read whatever the ratio is
MAX_DEPTH = 32  # of elements in each other; a dump has 6
MEDIA_KEYS = ("-2", "6", "14")  # of the namespaces Media, File and Category in the dump's <siteinfo>

# Content languages whose code is not the name that fastText's lid.176 gives to the language.
FASTTEXT_NAMES = {"nb": "no", "gsw": "als", "cbk-x-zam": "cbk", "egl": "eml", "bho": "bh", "zh-yue": "yue"}
MAX_HEAD = 16 << 20  # bytes of a multistream dump's first stream
_WANTED = ("title", "ns", "text", "timestamp")  # elements of a page
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")  # where a stream may begin
_TEMPLATE = re.compile(r"\{\{\s*([^{}|\n]{1,80}?)\s*[|}\n]")
_PREFIXES = ("homonymie de", "homonymie d'", "egyért-", "egyért ")
# What stands for a list of meanings: names of its templates, in lower case, by the wiki's language.
_DISAMBIGUATION: dict[str, tuple[str, ...]] = {
    "en": ("disambig", "dab", "disam", "hndis", "geodis", "schooldis", "roaddis", "numberdis", "mathdab", "disambig-cleanup"),
    "bg": ("пояснение", "пояснителна страница"),
    "ca": ("desambiguació", "desambigua"),
    "cs": ("rozcestník", "rozcestník - příjmení", "rozcestník - jméno"),
    "da": ("flertydig", "flertydigt", "flertydig navn"),
    "de": ("begriffsklärung",),
    "es": ("desambiguación", "des"),
    "fr": ("homonymie", "homonyme", "homonymes", "toponymie", "arrondissements homonymes", "paronymie"),
    "hr": ("razdvojba", "disambig", "višeznačnost"),
    "hu": ("egyért", "egyértelműsítő lap"),
    "it": ("disambigua",),
    "nl": ("dp", "doorverwijspagina", "dpintro"),
    "pl": ("ujednoznacznienie", "ujednoznacznienie2", "ujedn"),
    "pt": ("desambiguação", "desambig-ini", "desambig"),
    "ro": ("dezambiguizare", "dezambig", "dezamb"),
    "ru": ("неоднозначность", "многозначность", "многозначные термины"),
    "sl": ("razločitev", "disambig"),
    "sr": ("вишезначна одредница", "вишезначност", "višeznačna odrednica", "vz"),
    "sv": ("förgrening", "förgreningssida", "gren", "grensida", "robotskapad förgrening", "geodisgren", "namnförgrening"),
    "uk": ("багатозначність", "неоднозначність", "багатозначні терміни"),
}
Buffered = BufferedReader | gzip.GzipFile
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")


@dataclass(frozen=True)
class Article:
    """An article: the language as fastText names it, the title, and lines of plain text; its address and the date of its
    revision (ISO 8601), where the dump says so."""

    language: str
    title: str
    text: str
    url: str = ""
    date: str = ""


class BadFile(Exception):
    """A file can't be read any further; the message is the reason under which it is counted."""


def read_articles(
    source: str,
    counts: Counter[str],
    *,
    openings: bool = False,
    part: tuple[int, int] | None = None,
    disambiguations: bool = True,
) -> Iterator[Article]:
    """The articles of a dump, in its order: pages of the main namespace that are no redirects.

    XML or JSON, plain, gzip or bzip2 (of several streams as well): told by the file's first bytes. Memory: a few pages,
    whatever the file.

    Args:
        source: path or fsspec URL.
        counts: added to: `articles_read`, `skipped_redirect`, `skipped_namespace`, `skipped_empty` (no text is left), and
            faults: `bad_too_large` (the page is left out), `bad_record` (a JSON line that is no page, left out), and what
            ends a file before its end: `bad_not_a_dump`, `bad_language` (none is named, or it is no language code),
            `bad_doctype` (dumps have none; entities can be bombs), `bad_broken_xml`, `bad_truncated`, `bad_compression`,
            `bad_bomb` (more than 100 times what it is compressed to).
        openings: only what stands before the first heading.
        part: of a multistream dump: bytes of `stream_parts`.
        disambiguations: False: they are passed over (`is_disambiguation`), as `skipped_disambiguation`.
    Raises: OSError where the source cannot be opened or read. Nothing for what is in it.
    """
    try:
        with open_compressed(source, part) as file:
            if part is not None:
                articles = _read_xml(_part_chunks(source, part, file), counts, openings, disambiguations)
            elif file.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                articles = _read_json(file, counts, openings, disambiguations)
            else:  # `read` would lose what comes before a fault
                articles = _read_xml(iter(lambda: file.read1(CHUNK), b""), counts, openings, disambiguations)
            for article in articles:
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
            for pages, _, wikitext, _ in _xml_pages(iter(lambda: file.read1(CHUNK), b""), counts):
                counts["articles_read"] += 1
                yield pages.language, wikitext
    except BadFile as fault:
        counts[f"bad_{fault}"] += 1


def stream_parts(path: str, split_bytes: int) -> list[tuple[int, int]]:
    """The parts of a local multistream dump, in order, each (first byte, byte behind the last), of about `split_bytes` or
    more: together they have each page once. One part where the file is smaller, or no stream of it begins with a page."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        starts, wanted = [0], split_bytes
        if size > split_bytes and not _head(file, 0, MAX_HEAD).rstrip().endswith(b"</siteinfo>"):
            wanted = size
        while wanted < size:
            file.seek(wanted)
            window = file.read(split_bytes)
            begins = (wanted + found.start() for found in _BZIP2.finditer(window))
            start = next((at for at in begins if _head(file, at, CHUNK).lstrip().startswith(b"<page>")), None)
            if start is not None:
                starts.append(start)
                wanted = start
            wanted += split_bytes
    return list(zip(starts, [*starts[1:], size], strict=True))


def _head(file: BinaryIO, start: int, length: int) -> bytes:
    """At most so many of the first bytes of the bzip2 stream that begins there; none where none does."""
    file.seek(start)
    stream, data = bz2.BZ2Decompressor(), b""
    try:
        while len(data) < length and not stream.eof and (more := file.read(DEFAULT_BUFFER_SIZE)):
            data += stream.decompress(more, length - len(data))
    except OSError:
        return b""
    return data


def _part_chunks(path: str, part: tuple[int, int], file: "Buffered") -> Iterator[bytes]:
    """The dump's head (its first stream), the part's pages, and what ends a dump."""
    with open(path, "rb") as whole:
        size = whole.seek(0, 2)
        if part[0]:
            yield _head(whole, 0, MAX_HEAD)
    yield from iter(lambda: file.read1(CHUNK), b"")
    if part[1] < size:
        yield b"</mediawiki>"


@contextmanager
def open_compressed(source: str, part: tuple[int, int] | None = None) -> Iterator[Buffered]:
    """A file's bytes, or those of a part of it, decompressed where the first ones are those of gzip or bzip2.

    Raises BadFile(`truncated`, `compression` or `bomb`) out of the block that reads it where decompression fails.
    """
    with fsspec.open(source, "rb") as raw:
        file: Buffered = BufferedReader(raw if part is None else cast(Any, byte_range(raw, part)))
        start = file.peek(3)
        if start.startswith(b"BZh"):
            file = BufferedReader(cast(Any, _Bounded(BufferedReader(cast(Any, _Bzip2(file)), CHUNK), file)), CHUNK)
        elif start.startswith(b"\x1f\x8b"):
            file = BufferedReader(cast(Any, _Bounded(gzip.GzipFile(fileobj=file), file)), CHUNK)
        try:
            yield file
        except EOFError:
            raise BadFile("truncated") from None
        except (OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # those of bz2 and gzip have no number
                raise
            raise BadFile("compression") from None


class _Bounded(RawIOBase):
    """What a compressed file is decompressed to; BadFile where that is far more than there is."""

    def __init__(self, plain: Buffered, compressed: Buffered) -> None:
        self._plain, self._compressed, self._size = plain, compressed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._plain.read1(len(buffer))
        self._size += len(data)
        if self._size > BEFORE_RATIO and self._size > MAX_RATIO * self._compressed.tell():
            raise BadFile("bomb")
        buffer[: len(data)] = data
        return len(data)


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


def is_disambiguation(language: str, title: str, wikitext: str) -> bool:
    """Whether a page only lists those that could be meant, by its templates or what stands behind its title in brackets.

    `language`: of the wiki; the names are those of the twenty languages of LLaMA's Wikipedia, and English ones.
    """
    if "__DISAMBIG__" in wikitext:
        return True
    names = _DISAMBIGUATION["en"] + _DISAMBIGUATION.get(language, ())
    if title.endswith(")") and title.lower().rpartition("(")[2].removesuffix(")").strip() in names:
        return True
    found = (template[1].replace("_", " ").lower().rpartition(":")[2].strip() for template in _TEMPLATE.finditer(wikitext))
    return any(name.startswith(_PREFIXES) or name.endswith("disambiguation") or name in names for name in found)


def _read_json(file: Buffered, counts: Counter[str], openings: bool, disambiguations: bool) -> Iterator[Article]:
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
        templates = page.get("template")
        if not disambiguations and isinstance(templates, list):
            listed = "".join(f"{{{{{template}}}}}" for template in templates if isinstance(template, str))
            if is_disambiguation(language_name(page.get("language")), title, listed):
                counts["skipped_disambiguation"] += 1
                continue
        text = text.encode(errors="replace").decode()  # JSON can name halves of surrogate pairs
        lines = [" ".join(line.split()) for line in text.split("\n")]
        language, title = language_name(page.get("language")), title.encode(errors="replace").decode()
        yield Article(language, title, "\n".join(filter(None, lines)))


def _read_xml(chunks: Iterator[bytes], counts: Counter[str], openings: bool, disambiguations: bool) -> Iterator[Article]:
    for pages, title, wikitext, date in _xml_pages(chunks, counts):
        if not disambiguations and is_disambiguation(pages.language, title, wikitext):
            counts["skipped_disambiguation"] += 1
            continue
        text = plain_text(opening(wikitext) if openings else wikitext, pages.media)
        yield Article(pages.language, title, text, pages.folder and pages.folder + quote(title.replace(" ", "_")), date)


def _xml_pages(chunks: Iterator[bytes], counts: Counter[str]) -> Iterator[tuple["_Pages", str, str, str]]:
    """(the dump so far, title, wikitext, date) of each article."""
    pages = _Pages(counts)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = pages.start
    parser.EndElementHandler = pages.end
    parser.CharacterDataHandler = pages.data
    parser.StartDoctypeDeclHandler = pages.doctype
    size = 0
    while True:
        chunk = next(chunks, b"")
        size += len(chunk)
        fault = None
        try:
            parser.Parse(chunk, not chunk)
        except BadFile as error:
            fault = error
        except (expat.ExpatError, LookupError, ValueError):  # the latter two for unknown encodings
            fault = BadFile(("broken_xml" if chunk else "truncated") if pages.language else "not_a_dump")
        ready, pages.ready = pages.ready, []
        for title, wikitext, date in ready:
            yield pages, title, wikitext, date
        if fault:
            raise fault
        if not chunk:
            return
        if size - parser.CurrentByteIndex > MAX_PAGE:  # a tag or comment without an end
            raise BadFile("broken_xml")


class _Pages:
    """Expat's handlers: elements in, (title, wikitext, date) of articles out in `ready`."""

    def __init__(self, counts: Counter[str]) -> None:
        self.language = ""
        self.folder = ""  # of the pages' addresses
        self.media = set(MEDIA_NAMESPACES)
        self.ready: list[tuple[str, str, str]] = []
        self._counts = counts
        self._open: list[str] = []
        self._page = dict.fromkeys(_WANTED, "")
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
                self._page = dict.fromkeys(_WANTED, "")
                self._redirect = self._too_large = False
            case ["page", "redirect"]:
                self._redirect = True
            case ["page", "title" | "ns"] | ["page", "revision", "text" | "timestamp"] | ["siteinfo", "base"]:
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
            elif name == "base":
                self.folder = text.rpartition("/")[0] + "/" if text.startswith(("http://", "https://")) else ""
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
                self.ready.append((self._page["title"], self._page["text"], self._page["timestamp"].strip()))
