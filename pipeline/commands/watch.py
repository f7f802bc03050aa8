"""watch: the folder of a run in, its report served to a browser on this machine, made anew from the records while it goes on.

It listens on 127.0.0.1 alone, has one page, and answers GET and HEAD. A request must name this machine as its host: a page
of another site that made its own name point here (DNS rebinding) gets nothing.
"""

import re
import sys
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import key, require

if TYPE_CHECKING:  # what --help does not need
    from pipeline.live import LivePage

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE | re.ASCII)  # any port: one may be forwarded to this
IDLE_SECONDS = 10  # after which a connection that says nothing is closed
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Settings:
    """Keys of the command."""

    out: str = key("out", "the folder of the run")
    port: int = key(8080, "of 127.0.0.1; 0: any that is free")
    every: int = key(5, "seconds between two looks at the records")

    def __post_init__(self) -> None:
        require(0 <= self.port < 1 << 16, f"port={self.port}: choose 0 to 65535")
        require(1 <= self.every <= 3600, f"every={self.every}: choose 1 to 3600")


def run(settings: Settings) -> None:
    """Serves the page until it is interrupted."""
    from pipeline.live import LivePage

    out = Path(settings.out)
    require(out.is_dir(), f"out={out}: no such folder; begin the run first, or name its folder")
    try:
        server = Server((ADDRESS, settings.port), LivePage(out, settings.every))
    except OSError as error:
        raise ValueError(f"port={settings.port}: {error.strerror}; choose another, or 0 for any") from None
    with server:
        print(f"http://{ADDRESS}:{server.server_address[1]}/ shows {out}; end with Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


class Server(ThreadingHTTPServer):
    """Has the page that its handlers answer with."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: "LivePage") -> None:
        self.page = page
        super().__init__(address, Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says what went wrong; that a browser went away is nothing."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Sends the page, or an error of one word."""
        status, text = self._answer()
        body = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str]:
        if not HOST.fullmatch(self.headers.get("Host", "")):
            return HTTPStatus.MISDIRECTED_REQUEST, "no such host"
        if self.path.partition("?")[0] != "/":
            return HTTPStatus.NOT_FOUND, "no such page"
        return HTTPStatus.OK, self.server.page.text()

    def version_string(self) -> str:
        """What the header Server says."""
        return "llama-pretrain"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""
