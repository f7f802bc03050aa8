"""A WARC response in, the title and main text of its page out, or the reason why there is none.

The charset is that of a byte order mark, the Content-Type, the page's meta element, or what detection finds, in this
order. The main text is resiliparse's, or all of the text where that finds next to nothing: menus are duplicated paragraphs
of their site, and go as such.

Sources: RFC 9112 (HTTP/1.1, chunked bodies), RFC 9110 (content codings), the WHATWG encoding standard (labels).
"""

import re
import zlib
from collections import Counter
from typing import Any

import pyarrow as pa
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, detect_mime, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

MAX_PAGE = 6 << 20  # bytes; Common Crawl cuts pages at 1 MiB, since 2025 at 5 MiB. Parsing takes up to 110 times as much memory
MAX_HEADER = 1 << 16
MAX_DEPTH = 4000  # elements inside each other; finding the main text takes time by its square
LEAST_SHARE = 0.1  # a main text that is a smaller part of the page has lost it (lists of links, above all)
HTML = frozenset({"text/html", "application/xhtml+xml"})
PLAIN = "text/plain"

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(r"^([a-z-]+)[ \t]*:(.*)$", re.MULTILINE)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def page_text(response: bytes | bytearray, counts: Counter[str]) -> str | None:
    """The title, on the first line, and the main text of an HTTP response.

    The title is that of the HTML; plain text has an empty one. None where the response is no page, and counted: as
    `skipped_status` (not 200), `skipped_content_type` (neither HTML nor plain text), `bad_broken_http`, `bad_too_large`
    (of more than 6 MiB). Bytes that the charset does not have become U+FFFD, counted as `bad_undecodable`.
    """
    status = _STATUS.match(response)
    head_end = _HEAD_END.search(response, 0, MAX_HEADER)
    if not status or not head_end:
        counts["bad_broken_http"] += 1
        return None
    if status[1] != b"200":
        counts["skipped_status"] += 1
        return None
    head = response[: head_end.start()].decode("latin-1").lower()
    headers = {name: value.strip() for name, value in _FIELD.findall(head)}
    declared = headers.get("content-type", "")
    kind = declared.partition(";")[0].strip()
    if kind and kind not in HTML and kind != PLAIN:
        counts["skipped_content_type"] += 1
        return None
    content = _decoded(bytes(response[head_end.end() :]), headers)
    if content is None or len(content) > MAX_PAGE:
        counts["bad_broken_http" if content is None else "bad_too_large"] += 1
        return None
    kind = kind or detect_mime(content)
    if kind not in HTML and kind != PLAIN:
        counts["skipped_content_type"] += 1
        return None
    text = _characters(content, declared, kind in HTML)
    if "\ufffd" in text and "\ufffd".encode() not in content:
        counts["bad_undecodable"] += 1
    return _main_text(text) if kind in HTML else "\n" + text


def _decoded(payload: bytes, headers: dict[str, str]) -> bytes | None:
    """The content without transfer and content codings, cut behind MAX_PAGE bytes; None where they are broken.

    Crawlers differ in which codings they leave in and which headers they keep, so a coding that is not there is none.
    """
    if "chunked" in headers.get("transfer-encoding", "") and _CHUNK_SIZE.match(payload):
        payload = _unchunked(payload)
    for coding in reversed([c.strip() for c in headers.get("content-encoding", "").split(",")]):
        if coding in ("gzip", "x-gzip", "deflate"):
            if (coding == "deflate") == payload.startswith(b"\x1f\x8b"):
                continue
            inflated = _inflated(payload, 31 if coding != "deflate" else 15)
            payload_or_none = inflated if inflated is not None or coding != "deflate" else _inflated(payload, -15)
        elif coding in ("br", "zstd"):
            payload_or_none = _decompressed(payload, "brotli" if coding == "br" else coding)
        else:
            continue
        if payload_or_none is None:
            return None
        payload = payload_or_none
    return payload


def _unchunked(payload: bytes) -> bytes:
    """What the chunks hold; where the last ones are missing or cut, what there is."""
    parts, at = [], 0
    while (size := _CHUNK_SIZE.match(payload, at)) and int(size[1], 16):
        at = size.end() + int(size[1], 16)
        parts.append(payload[size.end() : at])
        at += 2 if payload[at : at + 2] == b"\r\n" else 1
    return b"".join(parts)


def _inflated(payload: bytes, bits: int) -> bytes | None:
    try:
        return zlib.decompressobj(wbits=bits).decompress(payload, MAX_PAGE + 1)
    except zlib.error:
        return None


def _decompressed(payload: bytes, codec: str) -> bytes | None:
    try:
        with pa.CompressedInputStream(pa.BufferReader(payload), codec) as stream:
            return bytes(stream.read(MAX_PAGE + 1))
    except OSError:
        return None


def _characters(content: bytes, content_type: str, is_html: bool) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding, "replace")
    declared = re.search(r"charset\s*=\s*[\"']?([^\s\"';,]+)", content_type)
    label = map_encoding_to_html5(declared[1], fallback_utf8=False) if declared else None
    label = label or detect_encoding(content, from_html_meta=is_html) or "utf-8"
    return bytes_to_str(content, label, errors="replace")


def _main_text(html: str) -> str:
    tree = HTMLTree.parse(html)
    title = " ".join((tree.title or "").split())
    text = extract_plain_text(tree, preserve_formatting=True)
    if html.count("<") - html.count("</") <= MAX_DEPTH or _depth(tree) <= MAX_DEPTH:
        main = extract_plain_text(tree, main_content=True, preserve_formatting=True)
        if len(main) >= LEAST_SHARE * len(text):
            text = main
    return title + "\n" + text


def _depth(tree: HTMLTree) -> int:
    """How many elements lie inside each other at most, counted up to MAX_DEPTH + 1."""
    assert tree.document is not None
    node: Any = tree.document.first_element_child
    depth = deepest = 1
    while node is not None and deepest <= MAX_DEPTH:
        if (child := node.first_element_child) is not None:
            node, depth = child, depth + 1
            deepest = max(deepest, depth)
            continue
        while (following := node.next_element) is None and depth > 1:
            node, depth = node.parent, depth - 1
        node = following
    return deepest
