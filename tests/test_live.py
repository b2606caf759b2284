"""What the live page's server answers, and its command; test_report_browser.py opens the page itself."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from example_study import rows, write_study, write_table
from test_status import Driver

from analysis.front import pareto_points
from analysis.results import load_study
from tune.live import Server, main
from tune.reading import open_place

ROOT = Path(__file__).parents[1]


def running_study(folder: Path) -> Path:
    """A study under way, with a journal, that has not yet measured what `rows()` has beyond the first dozen."""
    write_study(folder, rows()[:12], status="running", trials=None, num_samples=18)
    driver = Driver(folder)
    driver.trial("t0000")
    driver.result("t0000", 3)
    driver.journal.close()
    return folder


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of a server that ends with the block."""
    server = Server(open_place(str(folder)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return running_study(tmp_path / "study")


@pytest.fixture
def port(study: Path) -> Iterator[int]:
    with serving(study) as port:
        yield port


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


@pytest.mark.slow
def test_what_the_server_answers(study, port):
    code, page = get(port, "/")
    assert code == 200 and 'id="strip"' in page and "t0000 dense, epoch 3" in page and 'id="front"' in page
    assert "connect-src 'self'" in page
    assert get(port, "/points.csv") == (200, (study / "points.csv").read_text())
    status = json.loads(get(port, "/status.json")[1])
    assert status["running"][0]["trial"] == "t0000" and len(status["front"]) == len(pareto_points(load_study(study)))
    before = json.loads(get(port, "/version")[1])
    assert json.loads(get(port, "/version")[1])["version"] == before["version"]
    Driver(study).result("t0000", 4)
    after = json.loads(get(port, "/version")[1])
    assert after["version"] == before["version"] and "epoch 4" in after["strip"]  # the report is as it was
    write_table(study / "points.csv", rows())
    assert json.loads(get(port, "/version")[1])["version"] != before["version"]
    assert "pareto" in json.loads(get(port, "/report.json")[1])["figures"]


def test_nothing_else_is_served(study, port):
    for path in ("/study.json", "/../study.json", "//etc/passwd", "/points.csv/", "/%2e%2e/study.json"):
        assert get(port, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert get(port, "/status.json", method)[0] == 501
    assert get(port, "/status.json", host="evil.example")[0] == 403
    assert get(port, "/status.json", host=f"localhost:{port}")[0] == 200
    (study / "points.csv").write_text("trial_id\n")
    code, said = get(port, "/")
    assert code == 503 and "missing column(s)" in said


def test_a_study_without_points_says_so(tmp_path, study, port):
    (study / "points.csv").unlink()
    code, page = get(port, "/")
    assert code == 200 and "No feasible point yet" in page and "is not there yet" in page
    assert get(port, "/points.csv")[0] == 404


def test_bad_input(study, tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no study there" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([str(study), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be had ([Errno 98] Address already in use): choose another --port" in capsys.readouterr().out
    assert main([str(study), "--port", "70000"]) == 2


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_with_ctrl_c(study):
    command = [sys.executable, "tune/live.py", str(study), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert "study live at http://127.0.0.1:" in said and "Ctrl-C ends it" in said
    assert get(int(said.split()[3].rpartition(":")[2]), "/status.json")[0] == 200
    process.send_signal(signal.SIGINT)
    assert "the study is not touched" in process.communicate(timeout=30)[0] and process.returncode == 0
