"""A Stack Exchange site's `Posts.xml` in, plain or in the 7z archive in which it is published; its questions with their
answers, the best first, out.

Format: https://archive.org/details/stackexchange: one `<row …/>` a line, HTML in the attribute Body. A line that is no such
row costs that line; there are no entities but XML's five, and no document type, so there is nothing to expand.
"""

import os
import posixpath
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import fsspec
import py7zr
import py7zr.exceptions
import py7zr.io
from resiliparse.extract.html2text import extract_plain_text

from pipeline.sources.documents import Document
from pipeline.stage import expand_files, fingerprint

if TYPE_CHECKING:
    from pipeline.sources import Given

POSTS = "Posts.xml"
SITES = 28
QUESTION, ANSWER = 1, 2  # of PostTypeId
MAX_ROW = 4 << 20  # bytes; a post has 30,000 characters at most, before its HTML is made and escaped
MAX_RATIO = 50  # of an archive's text to its bytes; those published have 3 to 8
MAX_DICTIONARY = 1 << 28  # bytes that an archive's decoder may take; those published take 64 MiB
PARTITION = 256 << 20  # bytes of posts that are held at a time, about
MAX_PARTITIONS = 256
CHUNK = 1 << 20

_ROW = re.compile(rb'\s*<row((?: [A-Za-z]+="[^"<]*")+) ?/>\s*')
_ATTRIBUTE = re.compile(r' ([A-Za-z]+)="([^"]*)"')
_KIND = re.compile(rb' PostTypeId="(\d{1,3})"')
_NUMBER = re.compile(rb' Id="(\d{1,18})"')
_PARENT = re.compile(rb' ParentId="(\d{1,18})"')
_FRAME = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml [^>]*\?>|</?posts>)?\s*")
_NUMERIC = re.compile(r"&#(?:(\d{1,7})|x([0-9A-Fa-f]{1,6}));")
_NAMED = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}


class Post(NamedTuple):
    """A question or an answer; `question` is the number of its question (its own, where it is one), `body` is HTML."""

    number: int
    question: int
    score: int
    date: str
    title: str
    body: str


def files(name: str) -> Sequence[str]:
    """Files of a path, glob or URL; of a folder the `Posts.xml`, and the archives that hold a site's posts, of the 28 largest
    sites in it (as LLaMA took them, arXiv 2302.13971, section 2.1), by the bytes of these files."""
    if "://" in name or not os.path.isdir(name):
        return expand_files([name])
    found = [os.path.join(name, file) for file in os.listdir(name) if file.endswith(".7z") and _has_posts(file)]
    found += [path for folder in os.listdir(name) if os.path.isfile(path := os.path.join(name, folder, POSTS))]
    if not found:
        raise ValueError(f"{name}: has neither archives of sites (*.7z) nor folders with a {POSTS}")
    return sorted(sorted(found, key=lambda path: (-os.path.getsize(path), path))[:SITES])


def _has_posts(archive: str) -> bool:
    """Whether a published archive has a site's posts: those of the largest site are split (`stackoverflow.com-Posts.7z`), and
    sites about a site are none of their own."""
    site, _, table = archive.removesuffix(".7z").partition("-")
    return table in ("", "Posts") and not site.startswith("meta.") and ".meta." not in site


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """The questions of a site, each with its answers by descending score: `Q: title`, the question, `A:` and each answer.

    The file is a `Posts.xml`, or a 7z archive that has one, whose name, or whose folder's, is the site's. The posts go to the
    temporary folder, spread by their questions, so that memory is that of a part of them, some 1 GiB at most.

    `counts` is added to: `dropped_no_question` (answers without one), `dropped_other_post` (tag wikis and the like),
    `bad_row`, `bad_too_large` (of more than 4 MiB), `bad_undecodable` (rows), and what ends a file: `bad_compression`,
    `bad_bomb` (an archive that would grow 50-fold or needs too much memory), `bad_no_posts`.
    """
    with ExitStack() as opened:
        path = given.path
        file = opened.enter_context(fsspec.open(path, "rb"))
        size = fingerprint(path)[0]
        posts = _Partitions(given.temporary, counts, opened)
        if path.endswith(".7z"):
            _unpack(file, size, posts, counts)
        else:
            posts.spread(size)
            while chunk := file.read(CHUNK):
                posts.feed(chunk)
        posts.end()
        address = f"https://{_site(path)}/questions/"
        for partition in posts.files:
            yield from _questions(partition, address, counts)


def _unpack(file: IO[bytes], size: int, posts: "_Partitions", counts: Counter[str]) -> None:
    """Feeds the archive's Posts.xml to `posts`."""
    try:
        with py7zr.SevenZipFile(file, max_extract_size=MAX_RATIO * size) as archive:
            found = [info for info in archive.list() if posixpath.basename(info.filename) == POSTS and not info.is_directory]
            if not found:
                counts["bad_no_posts"] += 1
                return
            if found[0].uncompressed > MAX_RATIO * size or _dictionary(archive) > MAX_DICTIONARY:
                counts["bad_bomb"] += 1
                return
            posts.spread(found[0].uncompressed)
            archive.extract(targets=[found[0].filename], factory=_Factory(posts))
    except py7zr.exceptions.DecompressionBombError:
        counts["bad_bomb"] += 1
    except Exception:  # py7zr raises whatever a broken archive makes it trip over
        counts["bad_compression"] += 1


def _dictionary(archive: py7zr.SevenZipFile) -> int:
    """Bytes that the decoders of an archive take: LZMA, LZMA2 and PPMd say so in their properties (7zFormat.txt)."""
    largest = 0
    for folder in archive.header.main_streams.unpackinfo.folders:
        for coder in folder.coders:
            method, properties = coder["method"], coder.get("properties") or b""
            if method in (b"\x03\x01\x01", b"\x03\x04\x01"):
                largest = max(largest, int.from_bytes(properties[1:5], "little"))
            elif method == b"\x21":
                largest = max(largest, (2 | properties[0] & 1) << (properties[0] // 2 + 11))
    return largest


class _Factory(py7zr.io.WriterFactory):
    def __init__(self, posts: "_Partitions") -> None:
        self._posts = posts

    def create(self, filename: str) -> py7zr.io.Py7zIO:
        return _Writer(self._posts)


class _Writer(py7zr.io.Py7zIO):
    """What py7zr writes a member to."""

    def __init__(self, posts: "_Partitions") -> None:
        self._posts, self._size = posts, 0

    def write(self, s: bytes | bytearray) -> int:
        self._posts.feed(bytes(s))
        self._size += len(s)
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self._size


class _Partitions:
    """Rows, spread over files by the number of their question."""

    def __init__(self, folder: Path, counts: Counter[str], opened: ExitStack) -> None:
        self._folder, self._counts, self._opened = folder, counts, opened
        self._rest, self._skipping = b"", False
        self.files: list[IO[bytes]] = []

    def spread(self, size: int) -> None:
        """Makes the files, for so many bytes of posts."""
        number = min(MAX_PARTITIONS, 1 + size // PARTITION)
        self.files = [self._opened.enter_context(tempfile.TemporaryFile(dir=self._folder)) for _ in range(number)]  # noqa: SIM115

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of Posts.xml."""
        *lines, rest = data.split(b"\n")
        if lines:
            self._line(self._rest + lines[0])
            for line in lines[1:]:
                self._line(line)
            self._rest = rest
        else:
            self._rest += rest
        if len(self._rest) > MAX_ROW:
            self._rest, self._skipping = b"", True

    def end(self) -> None:
        """There are no more bytes."""
        if self._rest or self._skipping:
            self._line(self._rest)

    def _line(self, line: bytes) -> None:
        if self._skipping or len(line) > MAX_ROW:
            self._skipping = False
            self._counts["bad_too_large"] += 1
            return
        if not (row := _ROW.fullmatch(line)):
            self._counts["bad_row"] += not _FRAME.fullmatch(line)
            return
        kind = _KIND.search(row[1])
        if not kind or int(kind[1]) not in (QUESTION, ANSWER):
            self._counts["dropped_other_post" if kind else "bad_row"] += 1
            return
        question = (_NUMBER if int(kind[1]) == QUESTION else _PARENT).search(row[1])
        if not question or not _NUMBER.search(row[1]):
            self._counts["bad_row"] += 1
            return
        self.files[int(question[1]) % len(self.files)].write(line + b"\n")


def _questions(rows: IO[bytes], address: str, counts: Counter[str]) -> Iterator[Document]:
    """The questions of a partition in the order of their numbers."""
    rows.seek(0)
    posts = [_post(row, counts) for row in rows]
    posts.sort(key=lambda post: (post.question, post.number != post.question, -post.score, post.number))
    at = 0
    while at < len(posts):
        question, end = posts[at], at + 1
        while end < len(posts) and posts[end].question == question.question:
            end += 1
        if question.number == question.question:
            parts = [f"Q: {question.title}", plain(question.body), *(f"A: {plain(post.body)}" for post in posts[at + 1 : end])]
            text = "\n\n".join(part for part in parts if part)
            yield Document(url=f"{address}{question.number}", date=question.date, title=question.title, text=text)
        else:
            counts["dropped_no_question"] += end - at
        at = end


def _post(row: bytes, counts: Counter[str]) -> Post:
    text = row.decode("utf-8", "replace")
    counts["bad_undecodable"] += "\ufffd" in text and "\ufffd".encode() not in row
    found = dict(_ATTRIBUTE.findall(text))
    number = int(found["Id"])
    score = found.get("Score", "")
    return Post(
        number,
        number if int(found["PostTypeId"]) == QUESTION else int(found["ParentId"]),
        int(score) if re.fullmatch(r"-?[0-9]{1,9}", score) else 0,
        _date(found.get("CreationDate", "")),
        " ".join(_unescaped(found.get("Title", "")).split()),
        _unescaped(found.get("Body", "")),
    )


def _date(value: str) -> str:
    """ISO 8601 with the zone that Stack Exchange's dates are in; empty where there is none."""
    return f"{value[:19]}Z" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?", value) else ""


def plain(html: str) -> str:
    """The text of a post's HTML: its paragraphs and lists, code as it stands."""
    return extract_plain_text(html, preserve_formatting=True, alt_texts=False).strip()


def _unescaped(value: str) -> str:
    """An XML attribute's value. References to what XML 1.0 has no characters for become U+FFFD."""
    if "&" not in value:
        return value
    for name, character in _NAMED.items():
        value = value.replace(name, character)
    if "&#" in value:
        value = _NUMERIC.sub(_character, value)
    return value.replace("&amp;", "&")  # the last, so that what it makes stands for nothing


def _character(found: re.Match[str]) -> str:
    code = int(found[1]) if found[1] else int(found[2], 16)
    is_character = code in (9, 10, 13) or 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or 0x10000 <= code <= 0x10FFFF
    return "&amp;" if code == 38 else chr(code) if is_character else "\ufffd"


def _site(path: str) -> str:
    """The site that a file is of: `cooking.stackexchange.com.7z`, `stackoverflow.com-Posts.7z`, or a folder of that name."""
    folder, name = posixpath.split(path)
    stem = name.removesuffix(".7z").removesuffix(f"-{POSTS.removesuffix('.xml')}")
    return stem if name.endswith(".7z") else posixpath.basename(folder)
