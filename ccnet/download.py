"""Files from web servers: a URL in, the whole file out."""

import http.client
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ATTEMPTS = 8  # in a row that bring nothing new
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between two; each is twice the one before
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20
MAY_PASS = frozenset({408, 416, 425, 429, 500, 502, 503, 504})  # HTTP status codes that are worth another attempt


class _Interrupted(Exception):
    """An attempt failed in a way that another one may not."""


def download(url: str, target: Path) -> int:
    """Downloads `url` to `target`, which is whole when this returns; returns its bytes.

    A connection that fails or ends early is taken up where it ended (Range with If-Range, RFC 9110), after growing waits.
    Where the server has no ranges, or another file by now, the file begins anew. Whole is what has the length that the
    server announced (or, sent in chunks, has its last one).

    Raises: ValueError for a URL that is not http(s), where the server does not give the file (4xx that don't pass), or
        does not say how long it is; OSError after ATTEMPTS in a row that brought nothing new, and where `target` cannot
        be written.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: downloads are from http:// or https://")
    tag, most, failures = "", 0, 0
    with target.open("wb") as file:
        while True:
            try:
                with _open(url, file.tell(), tag) as response:
                    start, whole = _extent(url, response)
                    if start != file.tell():
                        file.seek(0)
                        file.truncate()
                        tag = ""
                    if start and not file.tell():
                        raise _Interrupted("a range that was not asked for")
                    tag = _tag(response)
                    while block := _call(response.read1, CHUNK):
                        file.write(block)
                if whole in (None, file.tell()):
                    return file.tell()
                raise _Interrupted(f"ended after {file.tell()} of {whole} bytes")
            except _Interrupted as error:
                failures = 0 if file.tell() > most else failures + 1
                most = max(most, file.tell())
                if failures == ATTEMPTS:
                    raise OSError(f"{url}: {error}, {ATTEMPTS} times in a row") from None
                time.sleep(min(FIRST_WAIT * 2**failures, LONGEST_WAIT) * random.uniform(0.5, 1))


def _open(url: str, start: int, tag: str) -> http.client.HTTPResponse:
    headers = {"User-Agent": "llama-pretrain", "Accept-Encoding": "identity"}
    if start and tag:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    response: http.client.HTTPResponse = _call(urlopen, Request(url, headers=headers), None, TIMEOUT)
    return response


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The network's part of the work: what fails in it may pass, but for the server's refusals."""
    try:
        return function(*arguments)
    except HTTPError as error:
        error.close()
        if error.code not in MAY_PASS:
            raise ValueError(f"{error.url}: the server answers {error.code} {error.reason}") from None
        raise _Interrupted(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from None


def _extent(url: str, response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(first byte, length of the whole file) of an answer; no length where it comes in chunks."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        unit, _, extent = response.headers.get("Content-Range", "").partition(" ")
        span, _, whole = extent.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal() or not whole.isdecimal():
            raise _Interrupted("a range without its place")
        return int(first), int(whole)
    if response.length is None and not response.chunked:
        raise ValueError(f"{url}: the server does not say how long the file is")
    return 0, response.length


def _tag(response: http.client.HTTPResponse) -> str:
    """What tells this file from a later one under its URL, or "" (then it can't be continued)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
