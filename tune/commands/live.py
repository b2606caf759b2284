"""HTTP server of the live page of a study: the work of the command tune/live.py."""

import argparse
import html
import ipaddress
import json
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.page import html as report_page
from analysis.results import Study
from analysis.typed_json import ResultsError
from data.signals import INTERRUPTED, STORAGE_S, interruptible
from data.untrusted import Terminal
from trainables.outputs.disk import disk_message
from tune.commands.status import current_study, sentences, study_status
from tune.reporting.csv_texts import points_text
from tune.study.reader import Follower, Place, open_place

SCRIPT = Path(__file__).with_name("live.js")
FILES = ("study.json", "test.csv")  # the points come from the journal
RUNNING_SHOWN = 8  # number of running trials that get a line of their own above the report


class Watched:
    """Read access to the study at `place`, whose files may change; a file is read again only if it has changed."""

    def __init__(self, place: Place):
        self.place, self.folder = place, place.folder
        self._follower = Follower(place.folder)
        self._lock = threading.Lock()  # each request has its own thread
        self._version = ""
        self._study: Study | None = None

    def read(self) -> tuple[str, Study, dict[str, Any]]:
        """Return the version string of the report, the study with its present points, and its status (`study_status`).

        The version string changes when points are added, when trials begin or end, and when study.json or test.csv
        changes.
        """
        with self._lock:
            self.place.refresh()
            self._follower.update()
            state = self._follower.state
            stamps = [path.stat() for name in FILES if (path := self.folder / name).exists()]
            n_points = sum(len(trial.points) for trial in state.trials.values())
            numbers = f"{n_points}.{len(state.trials)}.{state.n_ended}"
            version = "-".join([numbers, *(f"{s.st_mtime_ns:x}.{s.st_size:x}.{s.st_ino:x}" for s in stamps)])
            if self._study is None or version != self._version:
                self._study, self._version = current_study(self.folder, state), version
            return version, self._study, study_status(self.place, self._study, state)

    def page(self) -> str:
        """Return the HTML of the page: the status of the study above its report."""
        version, study, status = self.read()
        above = f'<section id="strip" data-version="{version}">{strip(status)}</section>'
        return report_page.page(study, above, SCRIPT.read_text())

    def answer(self, path: str) -> tuple[str, str | bytes] | None:
        """Return (content type, content) for the `path` of a URL; None for an unknown path. The paths are:

        - /: the page
        - /version: a string that changes when the report does (see `read`), and the HTML above the report; live.js
          requests both again and again
        - /report.json: HTML, plots and networks of the report, which live.js requests when that string has changed
        - /status.json and /points.csv: the status and the points of the study, for programs
        """
        if path == "/":
            return "text/html", self.page()
        if path == "/version":
            version, _, status = self.read()
            return "application/json", json.dumps({"version": version, "strip": strip(status)})
        if path == "/report.json":
            _, study, _ = self.read()
            plots = report_page.figures(study)
            parts = {"main": report_page.main(study, set(plots)), "figures": plots, "data": report_page.data(study)}
            return "application/json", json.dumps(parts)
        if path == "/status.json":
            return "application/json", json.dumps(self.read()[2])
        if path == "/points.csv":
            self.read()
            return "text/csv", points_text(self._follower.state)
        return None


def strip(status: dict[str, Any]) -> str:
    """Return the HTML that is shown above the report: progress, running trials, rejected samples and failed trials.

    `status` is the result of `study_status` (tune/status.py).
    """
    first, *lines = [html.escape(line) for line in sentences(status, RUNNING_SHOWN)]
    trials = status["trials"]
    bar = f'<progress max="{trials["asked"]}" value="{trials["ended"]}"></progress>'
    details = "".join(f"<p{' class=detail' if line.startswith(' ') else ''}>{line.strip()}</p>" for line in lines)
    return f"<p><b>{first}</b> {bar}</p>{details}"


class Server(ThreadingHTTPServer):
    """HTTP server of the page of one study."""

    daemon_threads = True

    def __init__(self, place: Place, host: str, port: int):
        self.watched = Watched(place)
        super().__init__((host, port), Handler)
        self.own_machine = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a closed browser page is not an error
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests with the page and the data of the study; `Watched.answer` lists their paths.

    The base class answers all other methods with status 501 (not implemented).
    """

    server: Server
    timeout = 60  # seconds after which a connection without data is closed

    def do_GET(self) -> None:
        if self.server.own_machine and not _names_this_machine(self.headers.get("Host", "")):
            # a page of another site whose host name resolves to this machine (DNS rebinding) must not read a study
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "host name not allowed: open localhost or 127.0.0.1 instead")
            return
        try:
            answer = self.server.watched.answer(self.path.partition("?")[0])
        except (ResultsError, OSError) as error:
            message = f"the study cannot be read: {error}. Correct the cause, then reload the page"
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", message)
            return
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "unknown path; expected /, /status.json or /points.csv")
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
        """Do not log requests: each open page sends one every two seconds."""


def _names_this_machine(host: str) -> bool:
    """Return whether `host`, the Host header of a request such as localhost:8800, is a name of this machine itself."""
    return re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?", host, re.IGNORECASE) is not None


def command(options: argparse.Namespace) -> int:
    """Run the server until Ctrl-C or SIGTERM; return the exit status (`tune.live.main`)."""
    console = Terminal(highlight=False, soft_wrap=True)
    try:
        with interruptible(STORAGE_S):
            return serve(options, console)
    except KeyboardInterrupt:
        console.print("interrupted before the page was served: repeat the command")
        return INTERRUPTED


def serve(options: argparse.Namespace, console: Console) -> int:
    """Serve the page until Ctrl-C or SIGTERM; return the exit status of the command."""
    try:
        place = open_place(options.study)
        Watched(place).read()
    except (ResultsError, OSError) as error:
        console.print(f"[red]error:[/red] {escape(disk_message(error))}", highlight=False, soft_wrap=True)
        return 2
    try:
        server = Server(place, options.host, options.port)
    except (OSError, OverflowError) as error:
        address = f"{options.host}:{options.port}"
        console.print(
            f"[red]error:[/red] cannot listen at {address} ({escape(str(error))}): choose another --port or --host"
        )
        return 2
    host, port = server.server_address[:2]
    console.print(f"live page of study {escape(place.folder.name)}: http://{host!s}:{port} (press Ctrl-C to stop it)")
    if not server.own_machine:
        console.print(
            f"[yellow]warning: --host {escape(options.host)}: every machine that reaches this port can read the page, "
            "without a password and without encryption: the study's settings and results, absolute paths of this "
            "machine and, in error messages, lines of the journal. To keep it private, use --host 127.0.0.1 and "
            f"forward the port: ssh -L {port}:127.0.0.1:{port} HOST[/yellow]"
        )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("interrupted: the live page has stopped; the study is unchanged")
        return INTERRUPTED
    finally:
        server.server_close()
    return 0
