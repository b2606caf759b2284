"""A small W&B server on this machine, which keeps what W&B sends: runs of a test are logged online without a network.

with wandb_server() as server:
    ...                       # a process with WANDB_BASE_URL=server.url and any WANDB_API_KEY
    server.requests           # what W&B sent
"""

import gzip
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """A request to the server; `headers` is without Authorization, and `body` is decompressed."""

    method: str
    path: str
    authorization: str | None
    headers: str
    body: bytes


@dataclass
class WandbServer:
    url: str
    requests: list[Request]

    def uploaded(self) -> set[str]:
        """Return the names of the files that W&B uploaded, such as wandb-metadata.json."""
        return {r.path.rpartition("/")[2] for r in self.requests if r.method == "PUT"}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    found = WandbServer("", [])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            authorization = self.headers.get("Authorization")
            del self.headers["Authorization"]
            found.requests.append(Request(self.command, self.path, authorization, str(self.headers), body))
            answer = json.dumps({"data": _answer(found.url, body) if self.path == "/graphql" else {}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def git_repository(folder: Path, remote: str) -> None:
    """Make `folder` a Git repository with one commit and the address `remote`; W&B records facts of a repository."""
    identity = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    for words in (
        ("init", "--quiet"),
        ("remote", "add", "origin", remote),
        (*identity, "commit", "--quiet", "--allow-empty", "--message=x"),
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)


def _answer(url: str, body: bytes) -> dict[str, Any]:
    """Return the data that answer the GraphQL request `body`: a new run, or the URLs for its files."""
    request = json.loads(body)
    operation, variables = request.get("operationName"), request.get("variables") or {}
    if operation == "UpsertBucket":
        project = {"id": "p", "name": "asc-tune", "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": variables["name"], "displayName": variables["displayName"], "config": "{}"}
        return {"upsertBucket": {"bucket": run | {"historyLineCount": 0, "project": project}, "inserted": True}}
    if operation == "CreateRunFiles":
        files = [{"name": name, "uploadUrl": f"{url}/files/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
    return {}
