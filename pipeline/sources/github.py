"""Files of source code in, those with a permissive licence and of sound form out, without licence headers.

Read are Parquet and JSON lines in the layout of BigQuery's `github_repos` (`repo_name`, `path`, `content`, `license`) or of
The Stack (`max_stars_repo_name`, `max_stars_repo_path`, `content`, `max_stars_repo_licenses`), and folders of git
repositories, whose working trees are read as they lie there: no git runs, and links are not followed.

LLaMA says of its rules only what they look at (arXiv 2302.13971, section 2.1): length of lines, share of alphanumeric
characters, header boilerplate. The thresholds are those of Codex and The Stack (arXiv 2107.03374, 2211.15533).
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ccnet.crawl import byte_range, open_source
from ccnet.text_files import ROWS, json_lines, row_group_starts
from ccnet.wet import PARQUET, plain_chunks
from pipeline.config import SourcesConfig
from pipeline.sources.documents import Document
from pipeline.stage import expand_files, fingerprint

if TYPE_CHECKING:
    from pipeline.sources import Given

MAX_FILE = 1 << 20  # bytes; The Stack has no larger ones
MAX_LICENCE = 1 << 18
REPOSITORY = ("repo_name", "max_stars_repo_name", "repository_name")
PATH = ("path", "max_stars_repo_path", "file_path")
LICENCE = ("license", "licenses", "max_stars_repo_licenses", "detected_licenses")
TEXT = "content"

_LICENCE_FILE = re.compile(r"(?:un)?licen[cs]es?(?:[-._].*)?|copying(?:[-._].*)?|mit-licen[cs]e.*", re.IGNORECASE)
_NOT_LETTERS = re.compile(r"[^a-z0-9]+")
# What the texts of licences say, without punctuation.
_GRANTS = {
    "mit": "permission is hereby granted free of charge to any person obtaining a copy",
    "bsd": "redistribution and use in source and binary forms with or without modification are permitted",
    "apache": "apache license version 2 0",
}
_OTHER = ("gnu general public license", "gnu lesser general public", "gnu affero", "mozilla public license", "eclipse public")

_FIRST_LINE = re.compile(r"(?:#!|<\?(?:php|xml)\b|#[ \t]*-\*-|#[ \t]*(?:vim?:|coding[:=])|\"use strict\")[^\n]*\n|\s*\n")
_BLOCKS = re.compile(
    r"(?:/\*.{0,20000}?\*/|<!--.{0,20000}?-->|\(\*.{0,20000}?\*\)|\{-.{0,20000}?-\})[ \t]*\n?",
    re.DOTALL,
)
_NO_COMMENT = r"(?![ \t]*(?:include|define|undef|if|ifdef|ifndef|pragma|import|error)\b)"  # behind #
_MARKS = ("//", f"#{_NO_COMMENT}", "--", ";", "%", "!", r"\*", r"dnl\b", r"REM\b", r"'?\.?\\\"")
_LINES = tuple(re.compile(rf"(?:[ \t]*{mark}[^\n]*(?:\n|\Z)){{1,400}}") for mark in _MARKS)
_BOILERPLATE = re.compile(
    r"copyright|\(c\)[ \t]+\d{4}|licen[cs]ed?\b|spdx-|all rights reserved|permission is hereby granted|warrant(?:y|ies)"
    r"|@generated|auto-?[ \t]?generated|automatically generated|generated (?:automatically|by|from|code|file)"
    r"|do not (?:edit|modify)",
    re.IGNORECASE,
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_ASCII_ALPHANUMERIC = bytes(code for code in range(128) if chr(code).isalnum())


def files(name: str) -> Sequence[str]:
    """Files of a path, glob or URL; of a folder the git repositories in it, sorted: itself, or those anywhere below.

    Raises: ValueError where there is none.
    """
    if "://" in name or not os.path.isdir(name):
        return expand_files([name])
    found = []
    for folder, folders, names in os.walk(name):
        if ".git" in folders or ".git" in names:
            found.append(folder)
            folders.clear()
        folders.sort()
    if not found:
        raise ValueError(f"{name}: no git repository there or below; a repository has a .git")
    return sorted(found)


def prints(path: str) -> tuple[int, str]:
    """(bytes, fingerprint) of a file or URL; of a repository by the names, sizes and times of its files."""
    if "://" in path or not os.path.isdir(path):
        return fingerprint(path)
    digest, size = xxhash.xxh3_128(), 0
    for name, entry in _tree(path):
        known = entry.stat(follow_symlinks=False)
        size += known.st_size
        digest.update(f"{name}\0{known.st_size}\0{known.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return size, digest.hexdigest()


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """A document for each file, in order; `dropped` where it is not kept: `licence`, `no_licence`, `long_line`, `long_lines`
    (on average), `not_alphanumeric`, `empty`.

    What was taken out of its beginning is `removed` as `header`. `counts` is added to: `dropped_no_text` (binary files of
    repositories), `dropped_large` (more than 1 MiB), and faults: `bad_broken_record`, `bad_no_text` (of a row),
    `bad_too_large`, `bad_truncated`, `bad_not_a_crawl_file`, `bad_unreadable` (files of repositories).
    """
    if os.path.isdir(given.path):
        yield from _repository(given.path, given.settings, counts)
        return
    with open_source(given.path) as file:
        if file.read(len(PARQUET)) == PARQUET:
            rows = _parquet(file, given.part, counts)
        else:
            rows = json_lines(plain_chunks(byte_range(file, given.part), counts), counts)
        for row in rows:
            text = row.get(TEXT)
            if not isinstance(text, str):
                counts["bad_no_text"] += 1
                continue
            if len(text) > MAX_FILE:
                counts["dropped_large"] += 1
                continue
            repository, path = (str(next((row[n] for n in names if row.get(n)), "")) for names in (REPOSITORY, PATH))
            url = f"https://github.com/{repository}/blob/HEAD/{path}" if repository else path
            yield _document(url, path, text, row_licences(row), given.settings)


def row_licences(row: Mapping[str, Any]) -> list[str]:
    """The licences that a row names, of the repository or found in it: one or a list of names."""
    value: Any = next((row[name] for name in LICENCE if row.get(name)), [])
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def is_permissive(licences: Sequence[str], families: Sequence[str]) -> bool:
    """Whether all of them are of one of the families: names such as `mit`, `BSD-3-Clause` and `apache-2.0`."""
    return all(re.fullmatch(rf"(?:\d)?(?:{'|'.join(map(re.escape, families))})(?:[-_ .].*)?", n.lower()) for n in licences)


def licence_of(text: str) -> str | None:
    """The family of a licence by its text, None for any other one. A text that has another licence as well is another."""
    plain = _NOT_LETTERS.sub(" ", text.lower())
    if any(other in plain for other in _OTHER):
        return None
    return next((family for family, words in _GRANTS.items() if words in plain), None)


def without_header(text: str) -> tuple[str, str]:
    """(header, rest): comments about licences and generated files at a file's beginning, and the file without them.

    A line that says how the file is read (`#!`, coding, `<?php`) stays. Other comments stay as well, and end the header.
    """
    at = 0
    first: list[str] = []
    removed: list[str] = []
    for _ in range(64):
        if line := _FIRST_LINE.match(text, at):
            first.append(line[0])
            at = line.end()
            continue
        start = at + len(text[at : at + 200]) - len(text[at : at + 200].lstrip(" \t"))
        found = _BLOCKS.match(text, start) or next((f for lines in _LINES if (f := lines.match(text, at))), None)
        if found is None or not _BOILERPLATE.search(found[0]):
            break
        removed.append(found[0])
        at = found.end()
    if not removed:
        return "", text
    kept = "".join(line for line in first if line.strip())
    return "".join(removed), kept + text[at:].lstrip("\n")


def _document(url: str, path: str, text: str, licences: Sequence[str] | None, settings: SourcesConfig) -> Document:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    title = path.rpartition("/")[2]
    reason = "no_licence" if not licences else None if is_permissive(licences, settings.licences) else "licence"
    if reason is not None:
        return Document(url, "", title, text, dropped=reason)
    header, text = without_header(text)
    return Document(url, "", title, text, None, _unsound(text, settings), (("header", header),) if header else ())


def _unsound(text: str, settings: SourcesConfig) -> str | None:
    if not text.strip():
        return "empty"
    lines = text.removesuffix("\n").split("\n")
    if max(map(len, lines)) > settings.max_line:
        return "long_line"
    if len(text) > settings.mean_line * len(lines) + len(lines):
        return "long_lines"
    plain = text.encode("ascii", "ignore")
    letters = len(plain) - len(plain.translate(None, _ASCII_ALPHANUMERIC))
    if len(plain) < len(text):
        letters += sum(map(str.isalnum, "".join(_NOT_ASCII.findall(text))))
    return "not_alphanumeric" if letters < settings.alphanumeric * len(text) else None


def _parquet(file: Any, part: tuple[int, int] | None, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError):
        counts["bad_not_a_crawl_file"] += 1
        return
    columns = [name for name in (TEXT, *REPOSITORY, *PATH, *LICENCE) if name in parquet.schema_arrow.names]
    first, end = part or (0, 1 << 62)
    groups = [number for number, start in enumerate(row_group_starts(parquet)) if first <= start < end]
    try:
        for batch in parquet.iter_batches(ROWS, groups, columns) if groups else ():
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError):
        counts["bad_truncated"] += 1


def _repository(folder: str, settings: SourcesConfig, counts: Counter[str]) -> Iterator[Document]:
    name = os.path.basename(folder.rstrip("/"))
    texts = (_text(entry, MAX_LICENCE) for path, entry in _tree(folder) if "/" not in path and _LICENCE_FILE.fullmatch(path))
    licences = [licence_of(text) or "other" for text in texts if text is not None]
    for path, entry in _tree(folder):
        if _LICENCE_FILE.fullmatch(entry.name):
            counts["dropped_licence_file"] += 1
            continue
        try:
            if entry.stat(follow_symlinks=False).st_size > MAX_FILE:
                counts["dropped_large"] += 1
                continue
            text = _text(entry, MAX_FILE)
        except OSError:
            counts["bad_unreadable"] += 1
            continue
        if text is None:
            counts["dropped_no_text"] += 1
        else:
            path = path.encode(errors="replace").decode()
            yield _document(f"{name}/{path}", path, text, licences, settings)


def _tree(folder: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path in the repository, entry) of all regular files, sorted; neither links nor `.git` nor other repositories."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if below and any(entry.name == ".git" for entry in found):
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != ".git":
                yield from _tree(entry.path, f"{below}{entry.name}/")
        elif entry.is_file(follow_symlinks=False) and entry.name != ".git":
            yield f"{below}{entry.name}", entry


def _text(entry: os.DirEntry[str], limit: int) -> str | None:
    """At most so many bytes of a file as text; None where it is not UTF-8 or has NULs."""
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = file.read(limit)
    try:
        return None if b"\x00" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return None
