"""Secrets of the environment are in no file that a study, Ray or W&B leaves, also after the driver was killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import PATIENCE_S, SMALL, SPACE, TOKEN, end, wait_until
from tests.support.paths import ROOT
from trainables.outputs.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SECRETS = {
    "AWS_ACCESS_KEY_ID": "MARKED0KEY",
    "AWS_SECRET_ACCESS_KEY": "MARKED0SECRET/+",
    "AWS_SESSION_TOKEN": "MARKED0SESSION",
    "AWS_SECURITY_TOKEN": "MARKED0SECURITY",
    "WANDB_API_KEY": "MARKED0WANDB" + 28 * "0",
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files. Its path is short, because paths of sockets have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def with_secrets(folder: Path) -> tuple[int, list[Path]]:
    """Return the number of files below `folder`, and those that contain a secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(files), [path for path in files if b"MARKED0" in path.read_bytes()]


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_no_secret_is_in_a_file(kind: str, bucket: str, tmp_path: Path, tiny_tau: Path, ray_folder: Path) -> None:
    """The driver of the study in a folder is killed; the study in an object store is complete."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "s.yaml").write_text(SPACE)
    storage = str(tmp_path / "runs") if kind == "folder" else f"{bucket}/secret"
    words = [
        *("--space", str(tmp_path / "s.yaml"), "--name", "x", "--storage", storage, "--num-samples", "1"),
        *(f"--dataset_dir={tiny_tau}", f"--cache_dir={tmp_path / 'cache'}", "train.epochs=2", *SMALL),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WANDB_"))} | {
        **{"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"},
        **{"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "RAY_TMPDIR": str(ray_folder)},
        **{"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "COLUMNS": "160", **TOKEN, **SECRETS},
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tune" / "run.py"), *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if kind == "folder":
            journal = tmp_path / "runs" / "x" / "journal"
            wait_until(lambda: any("epoch_reported" in file.read_text() for file in journal.glob("*")), process)
        else:
            output, _ = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0 and "MARKED0" not in output, output
    finally:
        end(process)
    n_files, found = with_secrets(tmp_path)
    _, found_by_ray = with_secrets(ray_folder)
    assert n_files > 10 and any(ray_folder.rglob("runtime_env_agent*"))  # otherwise nothing was searched
    assert found == [] and found_by_ray == []
    if kind == "object store":
        store = Store(f"{bucket}/secret")
        names = list(store.stamps("", recursive=True))
        assert any(name.startswith("x/wandb/") for name in names) and "x/study.json" in names
        assert [name for name in names if b"MARKED0" in store.read(name)] == []
