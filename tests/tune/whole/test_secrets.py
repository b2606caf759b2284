"""Secrets of the environment are in nothing that a study, Ray or W&B writes, prints or sends, however it ends."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.machines import PATIENCE_S, SMALL, SPACE, TOKEN, end, end_all
from tests.support.paths import ROOT
from tests.support.trainables.wandb_server import git_repository, wandb_server
from trainables.outputs.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

KEY = "MARKED0WANDB" + 28 * "0"
PROXY = "http://me:MARKED0PROXY@127.0.0.1:9"  # nobody listens there, and all servers are on this machine
SECRETS = {
    "AWS_ACCESS_KEY_ID": "MARKED0KEY",
    "AWS_SECRET_ACCESS_KEY": "MARKED0SECRET/+",
    "AWS_SESSION_TOKEN": "MARKED0SESSION",
    "AWS_SECURITY_TOKEN": "MARKED0SECURITY",
    "HF_TOKEN": "MARKED0HUB",
    "WANDB_API_KEY": KEY,
    "WANDB_HTTPS_PROXY": PROXY,
    **{"https_proxy": PROXY, "no_proxy": "127.0.0.1,localhost"},
}
REPOSITORY = "https://MARKED0REPOSITORY:x-oauth-basic@host/x.git"  # of the folder in which the command is started
# a driver whose trial crashes in its first epoch, with an error.txt of Ray; Ray does not try it again
CRASHING = """
import functools, sys
from trainables.ray_trainables import PruneTrainable
from tune import run
from tune.commands import search
from tune.search import ray_adapter

class Broken(PruneTrainable):
    def step(self):
        super().step()
        raise RuntimeError("this worker is broken")

ray_adapter.MAX_FAILURES = 0
search.Search.run = functools.partialmethod(search.Search.run, Broken)
sys.exit(run.main())
"""


# the secrets as they are, and with their user names in the base64 of HTTP's Basic authentication
FORMS = [b"MARKED0", TOKEN["RAY_AUTH_TOKEN"].encode()]
FORMS += [base64.b64encode(text.encode())[:-4] for text in (f"api:{KEY}", "me:MARKED0PROXY")]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files. Its path is short, because paths of sockets have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def shows_secret(data: bytes) -> bool:
    return any(form in data for form in FORMS)


def with_secrets(folder: Path) -> tuple[int, list[Path]]:
    """Return the number of files below `folder`, and those that contain a secret; Git's own files are left out."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and ".git" not in p.parts]
    return len(files), [path for path in files if shows_secret(path.read_bytes())]


def start(tmp_path: Path, storage: str, dataset: Path, ray_folder: Path, crashing: bool, url: str) -> subprocess.Popen:
    """Start the driver of a study with one trial, with secrets in its environment and a W&B server at `url` ("": none).

    Its home folder, its current folder (a Git repository) and what it prints (output.txt) are in `tmp_path`.
    """
    home, here, temporary = (tmp_path / name for name in ("home", "here", "temporary"))
    for folder in (home, here, temporary):
        folder.mkdir()
    git_repository(here, REPOSITORY)
    (tmp_path / "s.yaml").write_text(SPACE)
    words = [
        *("--space", str(tmp_path / "s.yaml"), "--name", "x", "--storage", storage, "--num-samples", "1"),
        *(f"--dataset_dir={dataset}", f"--cache_dir={tmp_path / 'cache'}", "train.epochs=2", *SMALL),
    ]
    wandb = {"WANDB_MODE": "online", "WANDB_BASE_URL": url} if url else {"WANDB_MODE": "offline"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WANDB_"))} | {
        **{"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"},
        **{"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(temporary)},
        **{"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        **{**TOKEN, **SECRETS, **wandb},
    }
    with (tmp_path / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, *(["-c", CRASHING] if crashing else [str(ROOT / "tune" / "run.py")]), *words],
            cwd=here,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.mark.parametrize(
    ("place", "way", "online"),
    [
        ("folder", "crashed", True),
        ("object store", "complete", True),
    ],
)
def test_no_secret_is_written_printed_or_sent(
    place: str, way: str, online: bool, bucket: str, tmp_path: Path, tiny_tau: Path, ray_folder: Path
) -> None:
    """The worker of its trial crashes, or the study is complete."""
    storage = str(tmp_path / "runs") if place == "folder" else f"{bucket}/secret"
    store = Store(f"{storage}/x")

    with wandb_server() as server:
        process = start(tmp_path, storage, tiny_tau, ray_folder, way == "crashed", server.url if online else "")
        try:
            process.wait(PATIENCE_S)
        finally:
            end(process)
            end_all(f"RAY_TMPDIR={ray_folder}")  # Ray's processes write until they notice that the driver was killed
    printed = (tmp_path / "output.txt").read_text()
    n_files, found = with_secrets(tmp_path)
    assert found == [] and with_secrets(ray_folder)[1] == [] and not shows_secret(printed.encode())
    sent = [repr(replace(request, authorization=None)) for request in server.requests]
    assert [text for text in sent if shows_secret(text.encode())] == []
    names = list(store.stamps("", recursive=True))
    assert [name for name in names if shows_secret(store.read(name))] == []
    # otherwise nothing was searched
    assert n_files > 10 and any(ray_folder.rglob("runtime_env_agent*")) and "study.json" in names, printed
    assert any(tmp_path.rglob("wandb/*run-*")) or any(name.startswith("wandb/") for name in names), printed
    if online:
        uploads = [request.path for request in server.requests if request.method == "PUT"]
        assert "wandb-metadata.json" in server.uploaded(), uploads
        keys = {request.authorization for request in server.requests} - {None}
        assert keys == {"Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()}
    if way == "crashed":
        assert any("this worker is broken" in file.read_text() for file in tmp_path.rglob("error.txt")), printed
    if way == "complete":
        assert process.returncode == 0, printed
