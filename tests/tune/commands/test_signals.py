"""SIGTERM ends each command, also if it was started with SIGINT ignored, as nohup, cron and CI systems do.

Also: a dashboard of Ray that does not start, and a first start of Ray that fails.
"""

import os
import signal
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from data.signals import Interrupts, interruptible
from tests.support.driven_study import Commands
from tests.support.imports import sources
from tests.support.machines import PATIENCE_S, wait_until
from tests.support.paths import ROOT
from tests.support.tune.signalled import started, wait_for_handler
from tune import evaluate, ray_start
from tune.commands import evaluate as evaluation
from tune.commands.search import run_command
from tune.driver import close
from tune.options import Repeat, read_request
from tune.study.access import StudyAccess
from tune.study.journal import read_state
from tune.study.manifest import StudyError, read_manifest, write_manifest

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
ENTRY_POINTS = sorted(name for name, path in sources().items() if '\nif __name__ == "__main__":' in path.read_text())


def test_the_entry_points_are_found() -> None:
    assert {"tune.run", "tune.live", "trainables.run_training", "analysis.report", "data.synthetic"} <= {*ENTRY_POINTS}


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_a_command_that_is_still_importing_ends_at_once(module: str) -> None:
    path = sources()[module].relative_to(ROOT)
    words = [str(path)] if f"python {path}" in (ROOT / path).read_text() else ["-m", module]  # as its docstring says
    process = started([*words, "run", "--help"] if module == "tune.cli" else [*words, "--help"])
    wait_for_handler(process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (130, "interrupted before the work began: repeat the command\n")


@pytest.mark.slow
def test_a_study_that_is_still_prepared_ends_in_order(typed: Commands, tmp_path: Path) -> None:
    """The signal comes while Ray starts, where `ray.init` has handlers of its own."""
    words = ["--space", "kd", "--name", "x", "--storage", str(typed.storage), *typed.arguments]
    process = started(["tune/run.py", *words])
    read_until(process, "baseline:")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert output.splitlines()[-1].endswith("--name x --resume auto") and "Traceback" not in output
    assert not [path for path in typed.storage.rglob("*") if path.suffix in (".tmp", ".old")]
    assert not list((typed.storage / "x").iterdir())


def searching(typed: Commands) -> subprocess.Popen[str]:
    """Return a process of tune/run.py that has trained at least one epoch of the study x."""
    words = ["--space", "prune", "--name", "x", "--storage", str(typed.storage), *typed.arguments, "distill.kd_alpha=1"]
    process = started(["tune/run.py", *words, "--num-samples", "3", "train.epochs=40"])
    read_until(process, "dashboard:")
    journal = typed.storage / "x" / "journal"
    wait_until(lambda: any('"epoch' in path.read_text() for path in journal.glob("*.jsonl")), process)
    return process


def read_until(process: subprocess.Popen[str], begin: str) -> None:
    """Read the output of `process` up to the first line that starts with `begin`."""
    assert process.stdout
    printed = []
    while not printed or not printed[-1].startswith(begin):
        printed.append(process.stdout.readline())
        assert printed[-1], printed


@pytest.mark.slow
@pytest.mark.ray
def test_a_signal_to_all_processes_of_a_search_ends_it_in_order(typed: Commands) -> None:
    """As scancel, systemd and timeout send it: Ray's processes get SIGTERM, too."""
    process = searching(typed)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert "--resume --name x" in output.splitlines()[-1] and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.ray
def test_a_signal_ends_a_search_whose_storage_is_away(typed: Commands) -> None:
    """Without waiting for the storage, and nothing is made in its place."""
    process, journal = searching(typed), typed.storage / "x" / "journal"
    journal.rename(typed.storage / "away")
    read_until(process, "the storage cannot be read or written")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert not journal.exists() and read_manifest(journal.parent).progress.status == "running"
    last = output.splitlines()[-1]
    assert last.startswith("interrupted; ") and str(journal) in last and "--resume --name x" in last
    (typed.storage / "away").rename(journal)
    assert read_state(journal.parent).drivers == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [["status"], ["live"], ["evaluate"], ["run", "--space", "kd", "--name", "x"]])
def test_a_signal_ends_a_command_whose_object_store_does_not_answer(words: list[str]) -> None:
    """pyarrow would wait for minutes, and Python calls no handler meanwhile."""
    name, *options = words
    code = f"from data import signals; signals.STORAGE_S = 0.3\nfrom tune.{name} import main; raise SystemExit(main())"
    where = ["--storage", "s3://bucket/studies"] if name == "run" else ["s3://bucket/studies/x"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        aws = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_EC2_METADATA_DISABLED": "true"}
        process = started(["-c", code, *options, *where], environment=aws | dict.fromkeys(KEYS, "x"))
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
        connection.close()
    assert process.returncode == 130, output
    reason = "the storage does not answer" if name == "run" else "the command did not end within 0 s"
    assert output.startswith(f"interrupted; {reason}") and len(output.splitlines()) <= 2


@pytest.mark.parametrize(("interrupted", "error"), [(False, StudyError), (True, KeyboardInterrupt)])
def test_nothing_is_made_in_the_place_of_a_storage_that_is_away(
    typed: Commands, interrupted: bool, error: type[BaseException]
) -> None:
    """The final status cannot be written; only after a signal is this an interrupt."""
    folder = typed.start("x", ended=1, opened=0)
    manifest, state, interrupts = read_manifest(folder), read_state(folder), Interrupts()
    if interrupted:
        interrupts.received.set()
    folder.rename(typed.storage / "away")
    with pytest.raises(error, match="--resume --name x") as raised:
        close(StudyAccess(folder), manifest, state, interrupts)
    assert not folder.exists() and isinstance(raised.value.__cause__, FileNotFoundError)


def test_the_line_says_how_to_continue(typed: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of --extend works again until the study has the new trials; afterwards it would add more of them."""
    folder = typed.start("x", "--num-samples", "1", ended=1, opened=0)
    write_manifest(folder, read_manifest(folder).changed(status="complete"))
    again, seen = Repeat(), list[str]()

    def interrupted(access: Any, manifest: Any, *rest: Any) -> int:
        seen.append(again.how())
        write_manifest(folder, manifest)
        seen.append(again.how())
        raise KeyboardInterrupt

    monkeypatch.setattr("tune.commands.search.run_study", interrupted)
    assert again.how() == "repeat the command"
    words = ["--storage", str(typed.storage), "--extend", "2"]
    with pytest.raises(KeyboardInterrupt):
        run_command(read_request(words), again, SimpleNamespace(print=print))  # type: ignore[arg-type]
    assert seen[0] == "repeat the command with --name x"
    assert f"--resume --name x --storage {typed.storage}" in seen[1]


def test_an_interrupted_evaluation_says_how_to_continue(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(evaluation, "place_of", lambda text: signal.raise_signal(signal.SIGTERM))
    assert evaluate.main([str(tmp_path)]) == 130
    assert capsys.readouterr().out.replace("\n", "").endswith(f"tune/evaluate.py {tmp_path}")


@pytest.mark.slow
@pytest.mark.ray
def test_a_dashboard_that_does_not_start_is_a_line(tmp_path: Path) -> None:
    code = """
import sys
from io import StringIO
from pathlib import Path
import ray
from rich.console import Console
from tune.ray_start import log_to_file, start_ray
log_to_file(Path(sys.argv[1]))
start_ray(None, Console(), Path(sys.argv[1]))
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""
    path = os.pathsep.join([str(ROOT / "tests" / "support" / "broken_dashboard"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ray.log")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0 and len(lines) == 2, lines
    assert lines[0].startswith("dashboard: not running") and lines[1] == "42"
    assert "Failed to start the dashboard" in (tmp_path / "ray.log").read_text()


def test_ray_is_started_once_more_and_then_the_failure_is_one_line(tmp_path, monkeypatch) -> None:
    """`ray.init` raises bare exceptions with many lines on a machine that is too busy."""
    failures = [Exception("the node timed out\nsecond line"), ValueError("no port")]

    def start() -> str:
        if failures:
            raise failures.pop(0)
        return "127.0.0.1:8265"

    monkeypatch.setattr(ray_start, "start_here", start)
    monkeypatch.setattr(ray_start, "check_access", lambda *arguments: None)  # asks the cluster, which is not there
    printed = StringIO()
    with interruptible(), pytest.raises(StudyError, match="no port") as raised:
        ray_start.start_ray(None, Console(file=printed, width=200), tmp_path / "log")
    assert "\n" not in str(raised.value) and str(tmp_path / "log") in str(raised.value)
    failures.append(Exception("the node timed out\nsecond line"))
    with interruptible():
        ray_start.start_ray(None, Console(file=printed, width=200), tmp_path / "log")
    assert len(printed.getvalue().splitlines()) == 3 and "127.0.0.1:8265" in printed.getvalue()
    assert "second line" not in printed.getvalue()


def test_sigterm_in_the_start_of_ray_is_an_interrupt(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray_start, "start_here", lambda: sys.exit(15))  # as the handler that `ray.init` installs
    with interruptible(), pytest.raises(KeyboardInterrupt):
        ray_start.start_ray(None, Console(file=StringIO()), tmp_path / "log")
