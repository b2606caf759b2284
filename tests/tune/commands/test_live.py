"""What the live page's server answers, and its command; test_report_browser.py opens the page itself."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.driven_study import Driver
from tests.support.paths import ROOT
from tests.support.tune.live import best_points, measure_more, running_study, serving
from tune.commands.live import Server
from tune.live import main
from tune.study.journal import segments


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return running_study(tmp_path / "study")


@pytest.fixture
def port(study: Path) -> Iterator[int]:
    with serving(study) as port:
        yield port


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
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
    assert status["running"][0]["trial"] == "t0000"
    assert [[p["trial_id"], p["step"]] for p in status["front"]] == best_points(study)
    before = json.loads(get(port, "/version")[1])
    assert json.loads(get(port, "/version")[1])["version"] == before["version"]
    driver = Driver(study)
    driver.epoch("t0000", 4)
    after = json.loads(get(port, "/version")[1])
    assert after["version"] == before["version"] and "epoch 4" in after["strip"]  # the report is unchanged
    measure_more(driver, 13, 14)  # points.csv lags behind, as its driver does not write it at every event
    assert json.loads(get(port, "/version")[1])["version"] != before["version"]
    report = json.loads(get(port, "/report.json")[1])
    assert "pareto" in report["figures"] and 'data-trial="t0014"' in report["main"]
    assert 'id="progress"' in report["main"] and 'id="trials"' in report["main"]
    curve, bars = (report["figures"][name]["data"] for name in ("progress", "trials"))
    assert curve[0]["x"][-1] == 15 and sum(len(trace["y"]) for trace in bars if trace["type"] == "bar") == 15
    version = json.loads(get(port, "/version")[1])["version"]
    driver.create("t0015")
    driver.end("t0015", "failed", "the loss is nan")
    assert json.loads(get(port, "/version")[1])["version"] != version  # the plot of the trials has changed
    assert "the loss is nan" in json.loads(get(port, "/report.json")[1])["main"]
    assert "\nt0014," in get(port, "/points.csv")[1] and "\nt0014," not in (study / "points.csv").read_text()


def test_nothing_else_is_served(study, port):
    for path in ("/study.json", "/../study.json", "//etc/passwd", "/points.csv/", "/%2e%2e/study.json"):
        assert get(port, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert get(port, "/status.json", method)[0] == 501
    assert get(port, "/status.json", host="evil.example")[0] == 403
    assert get(port, "/status.json", host=f"localhost:{port}")[0] == 200


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize(
    ("request_line", "host", "status"),
    [
        ("/status.json", "[::1", 403),
        ("/status.json", "[evil]", 403),
        ("/status.json", "127.0.0.1@evil", 403),
        ("/status.json", "", 403),
        ("/status.json", "localhost:\x7f\x00", 403),
        ("/status.json", "\u217cocalhost\u2100", 403),
        ("//[", "127.0.0.1", 404),
        ("http://[/status.json", "127.0.0.1", 404),
    ],
)
def test_malformed_requests_are_refused_without_a_traceback(port, capfd, request_line, host, status):
    answer = raw(port, f"GET {request_line} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.0 {status} ".encode()), answer[:200]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_page_for_other_machines_says_what_it_shows(study, monkeypatch, capsys, host, warned):
    monkeypatch.setattr(Server, "serve_forever", lambda self: None)
    assert main([str(study), "--host", host, "--port", "0"]) == 0
    output = capsys.readouterr().out
    assert ("warning" in output, "journal" in output) == (warned, warned)


def test_damage_is_answered_by_its_line_and_points_csv_is_not_needed(study, port):
    (study / "points.csv").write_text("trial_id\n")
    assert get(port, "/")[0] == 200
    path = segments(study)[0].path
    original = path.read_text()
    more = original.splitlines(keepends=True)[-1].replace("t0012", "t0000")
    path.write_text(f"{original}{more}damaged\n")
    for _ in range(2):
        code, text = get(port, "/")
        assert code == 503 and f"{path.name}, line {original.count(chr(10)) + 2} " in text
    path.write_text(original)
    assert get(port, "/")[0] == 200


def test_a_study_without_points_says_so(tmp_path):
    study = running_study(tmp_path / "new", trials=0)
    (study / "points.csv").unlink()
    with serving(study) as port:
        code, page = get(port, "/")
        assert code == 200 and "No feasible point yet" in page and "t0000 dense, epoch 3" in page
        table = get(port, "/points.csv")
        assert table[0] == 200 and table[1].count("\n") == 1  # the header


def test_bad_input(study, tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no study there" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([str(study), "--port", str(taken.getsockname()[1])]) == 2
    assert "[Errno 98] Address already in use): choose another --port" in capsys.readouterr().out
    assert main([str(study), "--port", "70000"]) == 2


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_with_ctrl_c(study):
    command = [sys.executable, "tune/live.py", str(study), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first_line = process.stdout.readline()
    assert "of study study: http://127.0.0.1:" in first_line and "Ctrl-C" in first_line
    assert get(int(first_line.split()[5].rpartition(":")[2]), "/status.json")[0] == 200
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and output.startswith("interrupted") and "Traceback" not in output
