"""Logging to Weights & Biases; no other file imports `wandb`. Without an API key, runs are logged offline.

A run's config, epoch metrics and prune metadata are logged. `wandb sync <study>/wandb/offline-run-*` uploads offline
runs later.
"""

import logging
import netrc
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb

from data.files import make_folder

PROJECT = "asc-tune"
_LOG = logging.getLogger(__name__)


def mode() -> str:
    """Return `online` if there is an API key (WANDB_API_KEY or ~/.netrc) and the server answers, else `offline`.

    WANDB_MODE overrides this. The server is tried for at most 5 s, so that W&B's own retries do not delay a trial.
    """
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = server.hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        return "offline"
    try:
        with socket.create_connection((host, server.port or 443), timeout=5):
            return "online"
    except OSError as error:
        _LOG.warning("W&B's server %s cannot be reached (%s): this run is logged offline", host, error)
        return "offline"


def _in_netrc(host: str) -> bool:
    try:
        return host in netrc.netrc().hosts
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class Tracker:
    """One W&B run. An error of W&B never stops a trial.

    If W&B refuses the run (the server does not answer, or the service of a killed process still holds the id), it is
    logged offline under a new id. If that fails too, the trial continues without W&B. Each case logs a warning.
    """

    def __init__(
        self, folder: Path, run_id: str, name: str, group: str, config: Mapping[str, Any], project: str = PROJECT
    ):
        make_folder(folder)
        self._folder = folder
        settings = wandb.Settings(silent=True, console="off", init_timeout=30, x_disable_stats=True)
        arguments: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", project),
            "name": name,
            "group": group,
            "dir": str(folder),
            "config": dict(config),
            "resume": "allow",
            "settings": settings,
            "reinit": "finish_previous",
        }
        self._run: wandb.Run | None = None
        for where, own_id in ((mode(), run_id), ("offline", f"{run_id}-{secrets.token_hex(3)}")):
            try:
                self._run = wandb.init(mode=where, id=own_id, **arguments)  # type: ignore[arg-type]
                return
            except Exception as error:  # W&B's exceptions have no common base class, and none may stop a trial
                _LOG.warning("W&B refused run %s (mode %s): %s", own_id, where, error)
                wandb.teardown()
        _LOG.warning("trial %s is not tracked by W&B; its local files are complete", name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log the metrics of epoch number `step`; only numbers and strings (info.json has the other values)."""
        if self._run:
            self._run.log({k: v for k, v in values.items() if isinstance(v, int | float | str)}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Add `values`, the figures of a measured point, to the summary of the W&B run."""
        if self._run:
            self._run.summary.update(dict(values))

    def finish(self) -> None:
        if self._run:
            self._run.finish()

    def files(self) -> list[Path]:
        """Return the local folders of the W&B run. Call `finish` first. `wandb sync` uploads offline runs."""
        return sorted(Path(self._folder, "wandb").glob(f"*run-*-{self._run.id}")) if self._run else []
