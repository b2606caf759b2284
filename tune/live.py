"""Serve a live page of a study: its current report, its running trials and its
growing front.

    python tune/live.py runs/<study> [--port 8800] [--host 127.0.0.1]

/             the page; it follows the study and keeps the scroll position and
              zoom (script: live.js)
/status.json  the output of tune/status.py --json
/points.csv   the current points of the study

It only reads the study's files; no driver needs to run. For a remote machine
forward the port: ssh -L 8800:127.0.0.1:8800 HOST
"""

import argparse
import html
import ipaddress
import json
import runpy
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))

from rich.console import Console
from rich.markup import escape

from analysis.manifest import ResultsError
from analysis.page import html as report_page
from analysis.results import Study
from tune.reporting.tables import points_text
from tune.status import current_study, sentences, study_status
from tune.study.reader import Follower, Place, open_place

SCRIPT = Path(__file__).with_name("live.js")
FILES = ("study.json", "test.csv")  # the points come from the journal
RUNNING_SHOWN = 8


class Watched:
    """A study that is read again whenever its files have changed."""

    def __init__(self, place: Place):
        self.place, self.folder = place, place.folder
        self._follower = Follower(place.folder)
        self._lock = threading.Lock()  # each request has its own thread
        self._version = ""
        self._study: Study | None = None

    def read(self) -> tuple[str, Study, dict[str, Any]]:
        """Return a version string of the files' present content, the study, and its status."""
        with self._lock:
            self.place.refresh()
            self._follower.update()
            state = self._follower.state
            stamps = [path.stat() for name in FILES if (path := self.folder / name).exists()]
            n_points = sum(len(trial.points) for trial in state.trials.values())
            version = "-".join([f"{n_points}", *(f"{s.st_mtime_ns:x}.{s.st_size:x}.{s.st_ino:x}" for s in stamps)])
            if self._study is None or version != self._version:
                self._study, self._version = current_study(self.folder, state), version
            return version, self._study, study_status(self.place, self._study, state)

    def page(self) -> str:
        """Return the HTML of the complete page."""
        version, study, status = self.read()
        above = f'<section id="strip" data-version="{version}">{strip(status)}</section>'
        return report_page.page(study, above, SCRIPT.read_text())

    def answer(self, path: str) -> tuple[str, str | bytes] | None:
        """Return content type and content for a URL's path; None if the path does not exist."""
        if path == "/":
            return "text/html", self.page()
        if path == "/version":
            version, _, status = self.read()
            return "application/json", json.dumps({"version": version, "strip": strip(status)})
        if path == "/report.json":
            _, study, _ = self.read()
            parts = {"main": report_page.main(study), "figures": report_page.figures(study)}
            return "application/json", json.dumps(parts)
        if path == "/status.json":
            return "application/json", json.dumps(self.read()[2])
        if path == "/points.csv":
            self.read()
            return "text/csv", points_text(self._follower.state)
        return None


def strip(status: dict[str, Any]) -> str:
    """Return the HTML above the report: progress, running trials, rejected samples and failed trials."""
    first, *lines = [html.escape(line) for line in sentences(status, RUNNING_SHOWN)]
    trials = status["trials"]
    bar = f'<progress max="{trials["asked"]}" value="{trials["ended"]}"></progress>'
    details = "".join(f"<p{' class=detail' if line.startswith(' ') else ''}>{line.strip()}</p>" for line in lines)
    return f"<p><b>{first}</b> {bar}</p>{details}"


class Server(ThreadingHTTPServer):
    """HTTP server of one study's page; `server_close` stops it."""

    daemon_threads = True

    def __init__(self, place: Place, host: str, port: int):
        self.watched = Watched(place)
        super().__init__((host, port), Handler)
        self.own_machine = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a closed browser page is not an error
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Handler of GET requests; the base class answers every other method with 501."""

    server: Server
    timeout = 60  # seconds until a silent connection is closed

    def do_GET(self) -> None:
        if self.server.own_machine and not _names_this_machine(self.headers.get("Host", "")):
            # a page of another site whose host name resolves to this machine (DNS rebinding) must not read a study
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "unknown Host: open this page as localhost or 127.0.0.1")
            return
        try:
            answer = self.server.watched.answer(urlsplit(self.path).path)
        except (ResultsError, OSError) as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"the study cannot be read: {error}")
            return
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "unknown path: open /, /status.json or /points.csv")
        else:
            self._send(HTTPStatus.OK, *answer)

    def _send(self, status: HTTPStatus, kind: str, content: str | bytes) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a page sends a request every two seconds."""


def _names_this_machine(host: str) -> bool:
    """Return whether a Host header names the loopback address."""
    return urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1", "::1")


def main(argv: list[str] | None = None) -> int:
    """Run the server until Ctrl-C; return exit status 2 if there is no study or the address is not available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of the study, or its URI in an object store")
    parser.add_argument("--port", type=int, default=8800, help="port; 0 selects a free one (default %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind; 0.0.0.0: the whole network (default %(default)s)"
    )
    options = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        place = open_place(options.study)
        Watched(place).read()
    except (ResultsError, OSError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}")
        return 2
    try:
        server = Server(place, options.host, options.port)
    except (OSError, OverflowError) as error:
        address = f"{options.host}:{options.port}"
        console.print(
            f"[red]error:[/red] {address} is not available ({escape(str(error))}): choose another --port or --host"
        )
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT for background jobs
    host, port = server.server_address[:2]
    console.print(f"{escape(place.folder.name)} live at http://{host!s}:{port}   (press Ctrl-C to stop)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("the page is closed; the study is unchanged")
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
