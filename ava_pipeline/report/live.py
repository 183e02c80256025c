"""The page served on this machine alone, always as fresh as the run."""

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
from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.errors import ConfigError, RunError
from ava_pipeline.read.status import status_now
from ava_pipeline.report.page import render_contents, render_page
from ava_pipeline.report.run_data import RunData, read_run_data

HOST = "127.0.0.1"
_REST = 9.0  # times as long as the last look took: a long run costs a tenth of a core, however often it is asked for
_HTTP = 80

Signature: TypeAlias = tuple[object, ...]


class LiveRuns:
    """Runs, looked at anew where a file of theirs changed, and not all the time.

    Args:
        layouts: by the names that the page shows.

    Raises:
        RunError: a run cannot be read.
    """

    def __init__(self, layouts: Mapping[str, RunLayout]) -> None:
        self._layouts = layouts
        self._lock = threading.Lock()
        self._signature: Signature = ()
        self._due = 0.0
        self._runs: list[RunData] = []
        self._contents = ""
        self._look()

    def page(self) -> str:
        """The whole page."""
        with self._lock:
            return render_page(self._runs, is_live=True)

    def contents(self) -> str:
        """What is on it now.

        Raises:
            RunError: a run cannot be read just now; the next call tries again.
        """
        with self._lock:
            if time.monotonic() >= self._due:
                self._look()
            return self._contents

    def _look(self) -> None:
        """Read the runs, if a file changed since the last look began, or a process went without a word."""
        signature = (*_stamps(self._layouts.values()), *_statuses(self._runs))
        if signature == self._signature:
            return
        began = time.monotonic()
        self._runs = [read_run_data(name, layout) for name, layout in self._layouts.items()]
        self._contents = render_contents(self._runs)
        self._signature = signature
        self._due = time.monotonic() + _REST * (time.monotonic() - began)


def serve(layouts: Mapping[str, RunLayout], port: int, *, tell: Callable[[str], None]) -> None:
    """Serve a page until Ctrl-C; a run that ends, crashes or is resumed stays on it.

    Args:
        layouts: by the names that the page shows.
        port: on 127.0.0.1; 0 takes one that is free.
        tell: is told the page's address once it is there.

    Raises:
        ConfigError: the port cannot be had.
        RunError: a run cannot be read.
    """
    with suppress(KeyboardInterrupt), server_of(LiveRuns(layouts), port) as server:
        tell(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()


def server_of(runs: LiveRuns, port: int) -> ThreadingHTTPServer:
    """Take the port.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Answer, runs))
    except OSError as error:
        raise ConfigError(f"Port {port} of {HOST} cannot be had: {error.strerror}. Give another one, or 0.") from error


class _Answer(BaseHTTPRequestHandler):
    """Two addresses, whatever is asked for: no file is ever looked up by a name that was sent."""

    server: HTTPServer

    def __init__(self, runs: LiveRuns, *connection: Any) -> None:
        self._runs = runs
        super().__init__(*connection)

    def do_GET(self) -> None:  # the library's name
        """Answer with the page, or with what is on it now."""
        if self.headers.get("Host") not in _hosts(self.server.server_port):
            # A name of elsewhere that leads here: another site's page would read this one (DNS rebinding).
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "This page is served to this machine alone.")
        elif self.path == "/":
            self._send(HTTPStatus.OK, self._runs.page(), kind="text/html")
        elif self.path == "/contents":
            self._send_contents()
        else:
            self._send(HTTPStatus.NOT_FOUND, "There is / and nothing else.")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Say nothing of each request."""

    def _send_contents(self) -> None:
        try:
            contents = self._runs.contents()
        except RunError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return
        tag = f'"{hashlib.sha256(contents.encode()).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, "", tag=tag)
        else:
            self._send(HTTPStatus.OK, contents, kind="text/html", tag=tag)

    def _send(self, status: HTTPStatus, text: str, *, kind: str = "text/plain", tag: str | None = None) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in _headers(kind, len(body), tag):
            self.send_header(name, value)
        with suppress(ConnectionError):  # the reader went away: nobody misses the answer
            self.end_headers()
            self.wfile.write(body)


def _headers(kind: str, num_bytes: int, tag: str | None) -> Iterator[tuple[str, str]]:
    yield "Content-Type", f"{kind}; charset=utf-8"
    yield "Content-Length", str(num_bytes)
    yield "Cache-Control", "no-store"
    yield "X-Content-Type-Options", "nosniff"
    yield "X-Frame-Options", "DENY"
    yield "Cross-Origin-Resource-Policy", "same-origin"
    if tag is not None:
        yield "ETag", tag


def _hosts(port: int) -> set[str]:
    names = {HOST, "localhost"}
    return {f"{name}:{port}" for name in names} | (names if port == _HTTP else set())


def _stamps(layouts: Iterable[RunLayout]) -> Iterator[tuple[str, int, int]]:
    """What changes when a file does: names, sizes, times."""
    for layout in layouts:
        for folder in (layout.root, layout.telemetry, layout.predictions):
            for path in sorted(folder.glob("*")):
                with suppress(OSError):  # renamed this moment: the next look sees it
                    found = path.stat()
                    yield str(path), found.st_size, found.st_mtime_ns


def _statuses(runs: Iterable[RunData]) -> Iterator[str]:
    return (status_now(seen.manifest, utc_now()) for seen in runs if seen.manifest is not None)
