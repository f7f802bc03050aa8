"""Small WET files for tests."""

import base64
import gzip
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

Page = tuple[str, str, Sequence[str]]  # url, title, lines


def wet_record(url: str, title: str, lines: Sequence[str]) -> bytes:
    """One conversion record, with the headers and line ends of Common Crawl's files."""
    body = "".join(f"{line}\n" for line in [title, *lines]).encode()
    digest = base64.b32encode(hashlib.sha1(body).digest()).decode()
    headers = [
        "WARC/1.0",
        "WARC-Type: conversion",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-05-18T01:58:10Z",
        "WARC-Record-ID: <urn:uuid:ba729a40-ff84-4085-8d48-0a5b2ee0c42d>",
        "WARC-Refers-To: <urn:uuid:2aabeff2-67f5-4608-8466-e87c6296e2b6>",
        f"WARC-Block-Digest: sha1:{digest}",
        "WARC-Identified-Content-Language: eng",
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + body + b"\r\n\r\n"


def write_wet(path: Path, pages: Iterable[Page]) -> Path:
    """A WET file of these pages, a gzip member for each record, the first one a warcinfo. Returns the path."""
    info = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 9\r\n\r\nrobots: x\r\n\r\n"
    records = [info, *(wet_record(*page) for page in pages)]
    path.write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    return path
