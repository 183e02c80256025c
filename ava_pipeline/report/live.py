"""The page served to this machine only, kept up to date with its runs."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, TypeAlias

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import status_now, utc_now
from ava_pipeline.errors import ConfigError, RunError
from ava_pipeline.report.page import render_contents, render_page
from ava_pipeline.report.run_data import RunData, read_run_data

HOST = "127.0.0.1"
_PAUSE_FACTOR = 9.0  # pause after reading, in reading times: however often it is asked, this takes a tenth of a core
_HTTP_PORT = 80

Signature: TypeAlias = tuple[object, ...]


def serve(layouts: Mapping[str, RunLayout], port: int, *, announce: Callable[[str], None]) -> None:
    """Serve a page until Ctrl-C; a run that ends, crashes or is resumed stays on it.

    `announce` is called with the page's address once it is served; port 0 picks a free port. Raise ConfigError if the
    port is not available, and RunError if a run cannot be read.
    """
    with suppress(KeyboardInterrupt), server_of(LivePage(layouts), port) as server:
        announce(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()


class LivePage:
    """A page of runs, which are read again when a file of theirs has changed. Requests may share it."""

    def __init__(self, layouts: Mapping[str, RunLayout]) -> None:
        self._layouts = layouts
        self._lock = threading.Lock()
        self._signature: Signature = ()
        self._next_read_s = 0.0
        self._runs: list[RunData] = []
        self._contents = ""
        self._read_if_changed()
        self._next_read_s = 0.0  # no pause yet: the first read also loaded plotly, so its time says little

    def page(self) -> str:
        """The whole page."""
        with self._lock:
            return render_page(self._runs, is_live=True)

    def contents(self) -> str:
        """The current contents of the page. Raise RunError if a run cannot be read at present."""
        with self._lock:
            if time.monotonic() >= self._next_read_s:
                self._read_if_changed()
            return self._contents

    def _read_if_changed(self) -> None:
        """Read the runs if a file changed since the last read began, or if a run's process has disappeared."""
        signature = (*_file_stamps(self._layouts.values()), *_statuses(self._runs))
        if signature == self._signature:
            return
        began_s = time.monotonic()
        self._runs = [read_run_data(name, layout) for name, layout in self._layouts.items()]
        self._contents = render_contents(self._runs, is_live=True)
        self._signature = signature
        self._next_read_s = time.monotonic() + _PAUSE_FACTOR * (time.monotonic() - began_s)


def _file_stamps(layouts: Iterable[RunLayout]) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of each file, one of which changes when the file does."""
    for layout in layouts:
        for folder in (layout.root, layout.telemetry, layout.predictions):
            for path in sorted(folder.glob("*")):
                with suppress(OSError):  # just renamed: the next read finds it
                    stat = path.stat()
                    yield str(path), stat.st_size, stat.st_mtime_ns


def _statuses(runs: Iterable[RunData]) -> Iterator[str]:
    return (status_now(run.manifest, utc_now()) for run in runs if run.manifest is not None)


def server_of(page: LivePage, port: int) -> ThreadingHTTPServer:
    """Bind the port. Raise ConfigError if it is not available."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(_RequestHandler, page))
    except OSError as error:
        raise ConfigError(
            f"Port {port} of {HOST} is not available: {error.strerror}. Give another port, or 0 for a free one."
        ) from error


class _RequestHandler(BaseHTTPRequestHandler):
    """Answers two addresses; no file is ever opened by a name from a request."""

    server: HTTPServer

    def __init__(self, page: LivePage, *connection: Any) -> None:
        self._page = page
        super().__init__(*connection)

    def do_GET(self) -> None:  # the library's name
        """Send the page, or its current contents."""
        if self.headers.get("Host") not in _allowed_hosts(self.server.server_port):
            # Another site whose name resolves to this machine could read the page (DNS rebinding).
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "This page is served to this machine only.")
        elif self.path == "/":
            self._send(HTTPStatus.OK, self._page.page(), media_type="text/html")
        elif self.path == "/contents":
            self._send_contents()
        else:
            self._send(HTTPStatus.NOT_FOUND, "Only / exists on this server.")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Log no requests."""

    def _send_contents(self) -> None:
        try:
            contents = self._page.contents()
        except RunError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return
        tag = f'"{hashlib.sha256(contents.encode()).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, "", tag=tag)
        else:
            self._send(HTTPStatus.OK, contents, media_type="text/html", tag=tag)

    def _send(self, status: HTTPStatus, text: str, *, media_type: str = "text/plain", tag: str | None = None) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in _headers(media_type, len(body), tag):
            self.send_header(name, value)
        with suppress(ConnectionError):  # the browser closed the connection and needs no answer
            self.end_headers()
            self.wfile.write(body)


def _headers(media_type: str, num_bytes: int, tag: str | None) -> Iterator[tuple[str, str]]:
    yield "Content-Type", f"{media_type}; charset=utf-8"
    yield "Content-Length", str(num_bytes)
    yield "Cache-Control", "no-store"
    yield "X-Content-Type-Options", "nosniff"
    yield "X-Frame-Options", "DENY"
    yield "Cross-Origin-Resource-Policy", "same-origin"
    if tag is not None:
        yield "ETag", tag


def _allowed_hosts(port: int) -> set[str]:
    names = {HOST, "localhost"}
    return {f"{name}:{port}" for name in names} | (names if port == _HTTP_PORT else set())
