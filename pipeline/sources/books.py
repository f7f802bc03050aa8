"""Books as plain text files in, their text out; of Project Gutenberg's without its header and licence.

Gutenberg has marked where a book begins and ends in several ways since 1991: `*** START OF THE PROJECT GUTENBERG EBOOK`,
`*END*THE SMALL PRINT!` and lines such as `End of Project Gutenberg's`; all of them are known here.
"""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import fsspec

from pipeline.sources.documents import Document
from pipeline.stage import expand_files

if TYPE_CHECKING:
    from pipeline.sources import Given

MAX_BOOK = 64 << 20  # bytes of a file's text
SUFFIXES = (".txt", ".asc", ".md", ".rst")  # of files in folders; also with .gz behind
HEAD, TAIL = 60_000, 60_000  # characters from the beginning and the end in which the marks are looked for

_START = re.compile(
    r"^[ \t]*(?:\*{2,3}[ \t]*START[ \t]+OF[ \t]+(?:THE|THIS)[ \t]+PROJECT[ \t]+GUTENBERG[^\n]*(?:\n[^\n*]+)?\*{0,3}"
    r"|\*END[ \t*]*(?:OF[ \t]+)?THE[ \t]+SMALL[ \t]+PRINT![^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*(?:\*{2,3}[ \t]*END[ \t]+OF[ \t]+(?:THE|THIS)[ \t]+PROJECT[ \t]+GUTENBERG"
    r"|\**[ \t]*END[ \t]+OF[ \t]+(?:THE[ \t]+|THIS[ \t]+)?PROJECT[ \t]+GUTENBERG"
    r"|\*{3}START:[ \t]*FULL[ \t]+LICENSE"
    r"|\*{3}[ \t]*START:[ \t]*FULL[ \t]+LICENSE)[^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_NOTES = re.compile(
    r"\A\s*(?:\[?(?:Produced|E-text prepared|This e-?(?:text|book) was (?:produced|prepared)|Transcribed|Scanned)\b"
    r"[^\n]*(?:\n[^\n]+)*\n\s*\n)+",
    re.IGNORECASE,
)
_FIELD = re.compile(r"^(Title|Language):[ \t]*(\S[^\n]*)$", re.MULTILINE | re.IGNORECASE)
_NUMBER = re.compile(r"\[(?:eBook|eText|E-Text)[ \t]+#?(\d{1,7})\]", re.IGNORECASE)
_CHARSET = re.compile(rb"Character set encoding:[ \t]*([A-Za-z0-9_-]{3,20})")
_LANGUAGES = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "dutch": "nl",
    "finnish": "fi", "swedish": "sv", "danish": "da", "norwegian": "no", "polish": "pl", "hungarian": "hu", "greek": "el",
    "latin": "la", "chinese": "zh", "japanese": "ja", "russian": "ru", "catalan": "ca", "esperanto": "eo", "czech": "cs",
    "bulgarian": "bg", "croatian": "hr", "romanian": "ro", "serbian": "sr", "slovenian": "sl", "ukrainian": "uk",
}  # fmt: skip


def files(name: str) -> Sequence[str]:
    """Files of a path, glob or URL; of a folder all text files below it, sorted; links are not followed."""
    if "://" in name or not os.path.isdir(name):
        return expand_files([name])
    found = []
    for folder, folders, names in os.walk(name):
        folders.sort()
        paths = (os.path.join(folder, file) for file in names if file.lower().removesuffix(".gz").endswith(SUFFIXES))
        found += [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    if not found:
        raise ValueError(f"{name}: has no text file; those end with {', '.join(SUFFIXES)}, and may be gzipped")
    return sorted(found)


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """The book of a file, gzipped or plain.

    Text is UTF-8, or as Gutenberg's header says, or else Windows-1252. Line ends become LF. `counts` is added to:
    `bad_too_large` (of more than 64 MiB), `bad_compression`, `bad_no_text` (bytes that are none); a book of which nothing is
    left is dropped as `empty`.
    """
    data = _read(given.path, counts)
    if data is None:
        return
    if b"\x00" in data[: 1 << 16]:
        counts["bad_no_text"] += 1
        return
    yield book(os.path.basename(given.path), decoded(data))


def book(name: str, text: str) -> Document:
    """A book from the text of the file of that name."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    header, body, licence = without_boilerplate(text)
    fields = {found[1].lower(): found[2].strip() for found in _FIELD.finditer(header)}
    number = _NUMBER.search(header)
    url = f"https://www.gutenberg.org/ebooks/{number[1]}" if number else name
    removed = tuple((reason, part) for reason, part in (("header", header), ("licence", licence)) if part)
    empty = None if body.strip() else "empty"
    language = _LANGUAGES.get(fields.get("language", "").lower())
    return Document(url, "", fields.get("title", ""), body, language, empty, removed)


def without_boilerplate(text: str) -> tuple[str, str, str]:
    """(header, book, licence) of a file with LF as line ends; header and licence are empty where Gutenberg's marks are not.

    The last mark of a beginning in the first 60,000 characters counts, and the first of an end in the last 60,000.
    """
    start = end = 0
    for found in _START.finditer(text, 0, HEAD):
        start = found.end()
    rest = max(start, len(text) - TAIL)
    found_end = _END.search(text, rest)
    end = found_end.start() if found_end else len(text)
    if start and (notes := _NOTES.match(text[start:end][:HEAD])):
        start += notes.end()
    return text[:start], text[start:end].strip("\n"), text[end:]


def decoded(data: bytes) -> str:
    """Text of a book's bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        charset = _CHARSET.search(data[:HEAD])
        names = [charset[1].decode().lower()] if charset else []
        for name in [*(n for n in names if n.startswith(("iso-8859", "iso8859", "windows-", "cp", "big5", "koi8"))), "cp1252"]:
            try:
                return data.decode(name)
            except (UnicodeDecodeError, LookupError):
                continue
        return data.decode("latin-1")


def _read(path: str, counts: Counter[str]) -> bytes | None:
    with fsspec.open(path, "rb") as raw:
        try:
            if raw.read(2) == b"\x1f\x8b":
                raw.seek(0)
                with gzip.GzipFile(fileobj=raw) as file:
                    data = bytes(file.read(MAX_BOOK + 1))
            else:
                raw.seek(0)
                data = bytes(raw.read(MAX_BOOK + 1))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            counts["bad_compression"] += 1
            return None
    if len(data) > MAX_BOOK:
        counts["bad_too_large"] += 1
        return None
    return data
