"""Downloads, against a real web server that fails in all the ways that servers and lines do."""

import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ccnet import download as module
from ccnet.download import ATTEMPTS, download

DATA = random.Random(0).randbytes(300_000)


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `script`, a method of `Handler`; the last one stays. Notes the ranges."""

    daemon_threads = True

    def __init__(self, *script: Callable[["Handler"], None], data: bytes = DATA) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.data, self.etag = list(script), data, '"one"'
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/models/en.sp.model"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        script = self.server.script
        self.server.ranges.append(self.headers["Range"])
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def begin(self, send: int | None = None) -> None:
        """The file, or what is asked for of it; only `send` bytes, then the line is cut."""
        first, status = 0, 200
        if (wanted := self.headers["Range"]) and self.headers["If-Range"] == self.server.etag:
            first, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
        body = self.server.data[first:]
        self.send_response(status)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(self.server.data) - 1}/{len(self.server.data)}")
        self.end_headers()
        self.wfile.write(body[:send])
        self.close_connection = send is not None


def whole(handler):
    handler.begin()


def cut(size):
    return lambda handler: handler.begin(size)


def status(code):
    def answer(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang_up(handler):
    handler.close_connection = True


def reset(handler):
    handler.begin(100_000)
    handler.wfile.flush()
    handler.connection.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER 0: the client gets a reset
    handler.connection.close()


def stall(handler):
    handler.begin(50_000)
    handler.close_connection = False
    handler.rfile.read(1)  # until the client hangs up


def without_ranges(handler):
    handler.headers.replace_header("Range", "") if handler.headers["Range"] else None
    handler.begin()


def in_chunks(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(DATA), 70_000):
        part = DATA[start : start + 70_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")


def in_chunks_cut(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n" % (70_000, DATA[:70_000]))
    handler.close_connection = True


def without_length(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(DATA)
    handler.close_connection = True


def other_file(handler):
    handler.server.etag, handler.server.data = '"two"', DATA[::-1]
    handler.begin()


def other_range(handler):
    handler.send_response(206)
    handler.send_header("Content-Length", "10")
    handler.send_header("Content-Range", f"bytes 7-16/{len(DATA)}")
    handler.end_headers()
    handler.wfile.write(DATA[7:17])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(module, "TIMEOUT", 1.0)


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        ([whole], [None]),
        ([status(503), status(429), hang_up, status(500), whole], [None] * 5),
        ([cut(100_000), cut(100_000), whole], [None, "bytes=100000-", "bytes=200000-"]),
        ([cut(1), status(503), hang_up, whole], [None, *["bytes=1-"] * 3]),
        ([cut(0), whole], [None, None]),
        ([stall, whole], [None, "bytes=50000-"]),
        ([cut(100_000), without_ranges], [None, "bytes=100000-"]),
        ([cut(100_000), other_range, whole], [None, "bytes=100000-", None]),
        ([cut(100_000), status(416), whole], [None, "bytes=100000-", "bytes=100000-"]),
        ([in_chunks_cut, in_chunks], [None, None]),
    ],
)
def test_what_fails_is_tried_again_from_where_it_ended(tmp_path, script, ranges):
    with Server(*script) as server:
        assert download(server.url, tmp_path / "file") == len(DATA)
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.ranges == ranges


def test_a_reset_connection(tmp_path):
    with Server(reset, reset, whole) as server:
        assert download(server.url, tmp_path / "file") == len(DATA)
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_file_that_is_another_one_by_now_begins_anew(tmp_path):
    with Server(cut(100_000), other_file) as server:
        download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA[::-1]


def test_progress_counts_not_attempts(tmp_path):
    with Server(*[cut(1000)] * 5 * ATTEMPTS, whole) as server:
        download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("script", [[status(503)], [hang_up], [cut(0)], [cut(1000), cut(0)], [other_range]])
def test_after_many_attempts_without_progress_it_gives_up(tmp_path, script):
    with Server(*script) as server, pytest.raises(OSError, match=f"en.sp.model: .*, {ATTEMPTS} times in a row"):
        download(server.url, tmp_path / "file")
    assert len(server.ranges) in (ATTEMPTS, ATTEMPTS + 1)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_the_server_does_not_have_is_said_at_once(tmp_path, code):
    with Server(status(code)) as server, pytest.raises(ValueError, match=f"en.sp.model: the server answers {code}"):
        download(server.url, tmp_path / "file")
    assert len(server.ranges) == 1


def test_a_length_that_nobody_knows(tmp_path):
    with Server(without_length) as server, pytest.raises(ValueError, match="does not say how long the file is"):
        download(server.url, tmp_path / "file")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x.example/y", "/etc/passwd", ""])
def test_other_urls(tmp_path, url):
    with pytest.raises(ValueError, match="http:// or https://"):
        download(url, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_server_that_is_not_there(tmp_path):
    with Server(whole) as server:
        pass
    with pytest.raises(OSError, match="refused"):
        download(server.url, tmp_path / "file")


def test_a_disk_that_is_full_is_not_tried_again():
    with Server(whole) as server, pytest.raises(OSError, match="No space left"):
        download(server.url, module.Path("/dev/full"))
    assert len(server.ranges) == 1


def test_an_empty_file(tmp_path):
    with Server(whole, data=b"") as server:
        assert download(server.url, tmp_path / "file") == 0
