"""Pages out of HTTP responses: codings, charsets, types, hostile markup."""

import gzip
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from ccnet import html
from ccnet.html import page_text

PAGE = (
    "<html><head><title> A\n title </title></head><body><nav>menu</nav><main><p>Straße Привет 漢字 {}</p></main></body></html>"
)
TEXT = "A title\nStraße Привет 漢字 "


def response(body, *headers, status="200 OK", line_end="\r\n"):
    head = line_end.join([f"HTTP/1.1 {status}", *headers]) + 2 * line_end
    return head.encode() + (body.encode() if isinstance(body, str) else body)


def read(data):
    counts = Counter()
    return page_text(bytearray(data), counts), dict(counts)


def chunked(data, size=7, end="\r\n"):
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(f"{len(p):x};x=y{end}".encode() + p + end.encode() for p in parts) + f"0{end}{end}".encode()


def brotli(data):
    return pa.Codec("brotli").compress(data, asbytes=True)


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_a_page_has_its_title_and_its_main_text(line_end):
    assert read(response(PAGE, "content-TYPE: Text/HTML ; charset=UTF-8", line_end=line_end)) == (TEXT + "{}", {})


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("br", brotli),
        ("zstd", lambda data: pa.Codec("zstd").compress(data, asbytes=True)),
        ("identity", bytes),
        ("gzip", bytes),  # the crawler has undone it and kept the header
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
@pytest.mark.parametrize("transfer", [None, chunked, lambda data: chunked(data, 1000, "\n"), bytes])
def test_codings(coding, encode, transfer):
    headers = ["Content-Type: text/html; charset=utf-8", f"Content-Encoding: {coding}"]
    body = encode(PAGE.encode())
    if transfer:
        headers.append("Transfer-Encoding: chunked")
        body = transfer(body)
    if coding == "gzip" and encode is bytes:
        body, headers = PAGE.encode(), headers[:2]
    assert read(response(body, *headers)) == (TEXT + "{}", {})


def test_a_page_whose_last_chunks_are_missing_is_read_so_far():
    body = chunked(PAGE.format("x" * 500).encode(), 100)
    text, counts = read(
        response(body[: len(body) // 2], "Content-Type: text/html; charset=utf-8", "Transfer-Encoding: chunked")
    )
    assert text.startswith(TEXT + "xxx") and len(text) < 400 and not counts


def test_broken_codings_are_counted():
    headers = ["Content-Type: text/html", "Content-Encoding: gzip"]
    broken = gzip.compress(PAGE.encode())[:10] + b"\xff" * 100
    assert read(response(broken, *headers)) == (None, {"bad_broken_http": 1})
    assert read(response(b"no brotli", headers[0], "Content-Encoding: br")) == (None, {"bad_broken_http": 1})
    assert read(b"no HTTP at all") == (None, {"bad_broken_http": 1})
    assert read(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n") == (None, {"bad_broken_http": 1})


def test_a_bomb_is_too_large():
    bomb = gzip.compress(b"<p>x" * (10 << 20))
    assert read(response(bomb, "Content-Type: text/html", "Content-Encoding: gzip")) == (None, {"bad_too_large": 1})
    assert read(response(b"x" * (html.MAX_PAGE + 1), "Content-Type: text/plain")) == (None, {"bad_too_large": 1})


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (["Content-Type: text/html; charset=windows-1251"], "<p>Привет, мир".encode("cp1251")),
        (['Content-Type: text/html; charset="koi8-r"'], "<p>Привет, мир".encode("koi8-r")),
        (["Content-Type: text/html"], '<meta charset="windows-1251"><p>Привет, мир'.encode("cp1251")),
        (
            ["Content-Type: text/html"],
            '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>Привет, мир'.encode("koi8-r"),
        ),
        (["Content-Type: text/html; charset=iso-8859-1"], "\ufeff<p>Привет, мир".encode()),
        (["Content-Type: text/html"], "\ufeff<p>Привет, мир".encode("utf-16-le")),
        (["Content-Type: text/html; charset=nonsense"], "<p>Привет, мир".encode()),
        (["Content-Type: text/html"], "<p>Привет, мир".encode()),
        (["Content-Type: text/html"], "<p>Привет, мир. Это русский текст без указания кодировки.".encode("cp1251")),
        (["Content-Type: application/xhtml+xml; charset=utf-8"], "<p>Привет, мир".encode()),
        (["Content-Type: text/plain; charset=utf-8"], "Привет, мир".encode()),
        ([], "<!DOCTYPE html><html><p>Привет, мир".encode()),
    ],
)
def test_charsets_and_types(headers, body):
    text, counts = read(response(body, *headers))
    assert text is not None and text.startswith("\nПривет, мир") and not counts


def test_bytes_that_no_charset_has():
    text, counts = read(response(b"a\x81\xffb" * 50, "Content-Type: text/plain; charset=utf-8"))
    assert text is not None and text.count("b") == 50 and set(counts) <= {"bad_undecodable"}


@pytest.mark.parametrize("status", ["301 Moved", "404 Not Found", "206 Partial", "500", "304 Not Modified"])
def test_other_statuses(status):
    assert read(response(PAGE, "Content-Type: text/html", status=status)) == (None, {"skipped_status": 1})


@pytest.mark.parametrize("kind", ["application/pdf", "image/png", "application/rss+xml", "text/css", "text/htmlx"])
def test_other_types(kind):
    assert read(response(PAGE, f"Content-Type: {kind}")) == (None, {"skipped_content_type": 1})


def test_plain_text_has_no_title():
    assert read(response("first\nsecond", "Content-Type: text/plain")) == ("\nfirst\nsecond", {})


@pytest.mark.parametrize("markup", ["<div>" * 200_000, "<b><i><a><u>" * 9_000 + "<p>" * 999, "<table>" * 99_999, "<" * 500_000])
def test_hostile_markup(markup):
    """Finding the main text of the first would take minutes."""
    text, counts = read(response(markup + "deep", "Content-Type: text/html"))
    assert text is not None and not counts


def test_a_page_of_links_keeps_its_text():
    links = "".join(f'<li><a href="/{n}">link number {n}</a></li>' for n in range(300))
    text, _ = read(response(f"<p>Some links</p><ul>{links}</ul>", "Content-Type: text/html"))
    assert text is not None and "link number 299" in text


@pytest.mark.slow
@pytest.mark.parametrize("element", ["<p>é", "<p a b c>", "<li>x", "<br>"])
def test_the_largest_page_takes_less_than_a_gibibyte(element):
    script = (
        "import re, sys; from collections import Counter; from ccnet.html import MAX_PAGE, page_text;"
        "body = sys.argv[1].encode(); body *= MAX_PAGE // len(body); counts = Counter();"
        "text = page_text(b'HTTP/1.1 200 OK\\r\\nContent-Type: text/html\\r\\n\\r\\n' + body, counts);"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]);"  # since exec; ru_maxrss is not
        "print(text is not None, dict(counts), peak < 1 << 20)"
    )
    command = [sys.executable, "-c", script, element]
    output = subprocess.run(command, cwd=Path(html.__file__).parents[1], capture_output=True, text=True, check=True)
    assert output.stdout == "True {} True\n"


def test_depth():
    for opened, depth in (("", 2), ("<div>", 3), ("<div>" * 50 + "</div>" * 30 + "<p>x<p>", 52), ("<br>" * 9, 3)):
        assert html._depth(html.HTMLTree.parse(opened)) == depth
