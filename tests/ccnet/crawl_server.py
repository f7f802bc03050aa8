"""A web server with Common Crawl's layout that can be told how to fail."""

import hashlib
import re
import socket
import struct
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class CrawlServer:
    """Serves `files` ({path: bytes}) on this machine. `faults[path]` says what happens to the next requests, one each.

    "503", "429" (with Retry-After: 0), "404": that status. "cut", "reset", "stall": half of what was asked for, then the
    connection ends, is reset, or is silent. "short": half of it, as if that were all. "whole": ranges are ignored
    ("whole cut": and it is cut).
    "garbage": something else under the same name. `requests` are the (path, Range) that came; `most` how many at once.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.headers: dict[str, str] = {}
        self.most = self._now = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        crawl = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with crawl._lock:
                    crawl._now += 1
                    crawl.most = max(crawl.most, crawl._now)
                try:
                    crawl._answer(self)
                finally:
                    with crawl._lock:
                        crawl._now -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.root = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> "CrawlServer":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.lstrip("/"), request.headers.get("Range")
        with self._lock:
            self.requests.append((path, wanted))
            fault = self.faults[path].pop(0) if self.faults[path] else ""
        if fault.isdigit() or path not in self.files:
            request.send_response(int(fault or 404))
            if fault == "429":
                request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        data = b"<html>try later</html>" if fault == "garbage" else self.files[path]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        if wanted and "whole" not in fault and request.headers.get("If-Range", tag) == tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        body = data[start:]
        half = body[: len(body) // 2]
        request.send_header("Content-Length", str(len(half if fault == "short" else body)))
        request.send_header("ETag", tag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        if not set(fault.split()) & {"cut", "reset", "stall", "short"}:
            request.wfile.write(body)
            return
        request.wfile.write(half)
        request.wfile.flush()
        request.close_connection = True
        if fault == "stall":
            self._closed.wait(30)
        elif fault == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
