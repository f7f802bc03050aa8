"""Where a crawl's files are: Common Crawl's lists in, whole files out, whatever the network does in between.

`list_segments` names the files of a snapshot, `download` fetches one of them, `open_source` opens any source for reading.
HTTP goes through `download`; other URLs go through fsspec.

Source: https://commoncrawl.org/get-started (layout below the root, and what it asks of clients: few connections, and
patience after 503).
"""

import base64
import email.utils
import gzip
import hashlib
import http.client
import io
import random
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import fsspec

from ccnet.gzip_members import GZIP, is_whole

ROOT = "https://data.commoncrawl.org/"
CHUNK = 1 << 20
ATTEMPTS = 8  # in a row without a byte of progress
LONGEST_PAUSE = 300.0  # seconds
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which a later try may succeed

_DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}(?:-\d{2})?|CC-MAIN-\d{4}(?:-\d{4})?")
_SEGMENT = re.compile(r"crawl-data(?:/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)+")


@dataclass(frozen=True)
class Source:
    """A crawl file, or a part of one.

    `path`: a path or URL. `part`: only its bytes from the first number to before the second (`ccnet.parts`). `text_column`:
    where the text is, in JSONL and Parquet.
    """

    path: str
    part: tuple[int, int] | None = None
    text_column: str = "text"


class _Changed(Exception):
    """The file on the server is another one than when its download began."""


def list_segments(listing: Path) -> list[str]:
    """The paths in a downloaded `wet.paths.gz` or `warc.paths.gz`, relative to Common Crawl's root.

    Raises: ValueError for a line that is no path of a crawl file, or a path that is there twice.
    """
    with gzip.open(listing, "rt", encoding="utf-8", errors="replace") as lines:
        paths = [line.strip() for line in lines if line.strip()]
    for path in paths:
        if not _SEGMENT.fullmatch(path):
            raise ValueError(f"{listing}: {path[:100]!r} is no path of a crawl file")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{listing}: names a file twice")
    return paths


def listing_path(dump: str, content: str) -> str:
    """Where, below Common Crawl's root, the list of a snapshot's files is. `content`: "wet" or "warc".

    Raises: ValueError if `dump` is no name of a snapshot.
    """
    if not _DUMP.fullmatch(dump):
        raise ValueError(f"crawl.dump: {dump!r} is no name of a snapshot such as CC-MAIN-2024-10")
    return f"crawl-data/{dump}/{content}.paths.gz"


def choose(paths: Sequence[str], which: Sequence[str]) -> list[str]:
    """Those of `paths` that `which` names by numbers ("7") and slices ("0:100", "::10"), in its order; all if it is empty.

    Raises: ValueError for what is neither, or for a number that is not there, or if one is chosen twice.
    """
    if not which:
        return list(paths)
    chosen: list[int] = []
    for item in which:
        if not re.fullmatch(r"\d+|\d*:\d*(:[1-9]\d*)?", item):
            raise ValueError(f"crawl.segments: {item!r} is neither a number nor a slice such as 0:100")
        if ":" in item:
            chosen += range(len(paths))[slice(*(int(n) if n else None for n in item.split(":")))]
        elif int(item) < len(paths):
            chosen.append(int(item))
        else:
            raise ValueError(f"crawl.segments: there is no segment {item}, only {len(paths)} of them, from 0 on")
    if len(set(chosen)) < len(chosen):
        twice = next(number for number in chosen if chosen.count(number) > 1)
        raise ValueError(f"crawl.segments: {list(which)} names segment {twice} twice")
    return [paths[number] for number in chosen]


def download(url: str, target: BinaryIO, *, timeout: float = 60.0, pause: float = 1.0, attempts: int = ATTEMPTS) -> None:
    """Copies a file to the start of `target` (open for reading and writing, empty), and makes sure that it is whole.

    HTTP: a server that is busy (408, 425, 429, 5xx), a connection that breaks, and one that is silent for `timeout` seconds
    are tried again, after `pause` seconds and twice as many each time, or as many as the server asks for; what has arrived
    stays, as long as the server has the same file. Whole is what has the Content-Length, the MD5 where the server tells it,
    and, where the name ends in .gz, a last gzip member that is complete.
    Raises: ValueError where s3:// needs a package; FileNotFoundError where there is no such file; OSError after `attempts`
        tries in a row without a byte of progress, or for a file that is not whole.
    """
    if not url.startswith(("http://", "https://")):
        try:
            with fsspec.open(url, "rb", **_options(url)) as remote:
                shutil.copyfileobj(remote, target, CHUNK)
        except ImportError:
            raise ValueError(f"{url}: s3:// needs the package s3fs: pip install '.[s3]'") from None
        _check_gzip(url, target)
        return
    failures = most = 0  # bytes that have been there
    validator = ""  # of the file whose first bytes `target` has
    while True:
        before = target.seek(0, io.SEEK_END)
        wait = 0.0
        try:
            with _request(url, before, validator, timeout) as response:
                if before and response.status != 206:
                    target.seek(0)
                    target.truncate()
                validator = _validator(response)
                _receive(response, target)
                try:
                    _check_md5(response, target)
                    _check_gzip(url, target)
                except OSError:
                    target.seek(0)
                    target.truncate()  # tried again from the start
                    raise
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise FileNotFoundError(f"{url}: there is no such file (HTTP {error.code})") from None
            if error.code == 416:  # what we have is longer than the file
                target.seek(0)
                target.truncate()
            elif error.code not in PASSING:
                raise OSError(f"{url}: the server refuses it: HTTP {error.code} {error.reason}") from None
            wait = _asked_for(error)
            reason = f"HTTP {error.code} {error.reason}"
        except _Changed:
            target.seek(0)
            target.truncate()
            reason = "the file changes while it is read"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        size = target.seek(0, io.SEEK_END)
        failures = 0 if size > most else failures + 1
        most = max(most, size)
        if failures >= attempts:
            raise OSError(f"{url}: given up after {failures} tries: {reason}")
        time.sleep(max(wait, min(pause * 2.0**failures, 60.0) * random.uniform(0.5, 1.0)))


@contextmanager
def open_source(path: str) -> Iterator[BinaryIO]:
    """A seekable file with the bytes of a path or URL. What is remote is copied first, so that a connection that breaks is
    mended, or an error, and no short file."""
    if "://" in path:
        with tempfile.TemporaryFile() as copy:
            download(path, copy)
            copy.seek(0)
            yield copy
        return
    with open(path, "rb") as file:
        yield file


def byte_range(file: BinaryIO, part: tuple[int, int] | None) -> BinaryIO:
    """The bytes of a file from the first number to before the second, as a file; all of it where `part` is None."""
    if part is None:
        file.seek(0)
        return file
    return io.BufferedReader(_Part(file, *part), CHUNK)


def _options(url: str) -> dict[str, Any]:
    """Common Crawl's bucket is open to everybody, and asks for no signature."""
    return {"anon": True} if url.startswith("s3://commoncrawl/") else {}


def _request(url: str, start: int, validator: str, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "llama-pretrain", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    if response.status == 206:
        sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if not sent or int(sent[1]) != start or _validator(response) != validator:
            response.close()
            raise _Changed
    return response


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells this file from a later one under the same name: a strong ETag, or the time of change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _receive(response: http.client.HTTPResponse, target: BinaryIO) -> None:
    """Appends the body. Raises OSError where it is not as long as its Content-Length."""
    expected = response.headers.get("Content-Length")
    received = 0
    while data := response.read1(CHUNK):
        target.write(data)
        received += len(data)
    if expected is not None and received != int(expected):
        raise OSError(f"the connection broke after {received} of {expected} bytes")


def _check_md5(response: http.client.HTTPResponse, target: BinaryIO) -> None:
    """S3's ETag is the MD5 where a file was stored in one piece and not encrypted with a key of its own."""
    tag, of_range = response.headers.get("ETag", "").strip('"').lower(), response.status == 206
    expected = ""
    if not of_range and (content_md5 := response.headers.get("Content-MD5")):
        expected = base64.b64decode(content_md5).hex()
    elif response.headers.get("x-amz-server-side-encryption", "AES256") == "AES256" and "AmazonS3" in (
        response.headers.get("Server") or ""
    ):
        expected = tag if re.fullmatch("[0-9a-f]{32}", tag) else ""
    if expected:
        digest = hashlib.md5(usedforsecurity=False)
        target.seek(0)
        while data := target.read(CHUNK):
            digest.update(data)
        if digest.hexdigest() != expected:
            raise OSError(f"its MD5 is {digest.hexdigest()}, not {expected}")


def _check_gzip(url: str, file: BinaryIO) -> None:
    if url.endswith(".gz"):
        file.seek(0)
        if file.read(len(GZIP)) != GZIP:
            raise OSError(f"{url}: what the server sends is no gzip file")
        if not is_whole(file):
            raise OSError(f"{url}: its last gzip member is cut or broken")


def _asked_for(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait: Retry-After, as a number or a date."""
    value = error.headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), LONGEST_PAUSE)
    try:
        return min(max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0), LONGEST_PAUSE)
    except ValueError:
        return 0.0


class _Part(io.RawIOBase):
    """The bytes of a file from `start` to before `end`, as a file."""

    def __init__(self, file: IO[bytes], start: int, end: int):
        self._file, self._start, self._size = file, start, end - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
