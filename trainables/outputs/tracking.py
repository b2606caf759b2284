"""Logging of trials to Weights & Biases (W&B); no other file imports `wandb`.

Each trial is a W&B run with its configuration, the metrics of each epoch, and the metrics and sizes of its points.
Without an API key, runs are logged offline; `wandb sync <study>/wandb/offline-run-*` uploads them later.
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
    """Return the W&B mode for a new run: the value of the environment variable WANDB_MODE, if it is set.

    Otherwise, the mode is `online` if there is an API key (WANDB_API_KEY or ~/.netrc) and the server accepts a
    connection within 5 s, else `offline`. Without this check, W&B's own retries could delay the trial.
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
        _LOG.warning(
            "W&B's server %s cannot be reached (%s), so the run is logged offline; upload it later with `wandb sync`",
            host,
            error,
        )
        return "offline"


def _in_netrc(host: str) -> bool:
    try:
        return host in netrc.netrc().hosts
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class Tracker:
    """The W&B run of one trial. An error of W&B never stops the trial.

    `folder` is the local folder for W&B's files. A trial that is resumed with the same `run_id` continues its W&B run.
    `name` and `config` are the name and the configuration of the trial, and `group` is the name of its study or the
    kind of a single run. The environment variable WANDB_PROJECT has priority over `project`.

    The server may not answer, or W&B's background process of a killed trial may still use the run id. The run is then
    logged offline under a new id. If that fails too, the trial is not logged to W&B. Each failure is logged as a
    warning.
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
        for where, own_id, action in (
            (mode(), run_id, "starting the run offline under a new id"),
            ("offline", f"{run_id}-{secrets.token_hex(3)}", "continuing without W&B"),
        ):
            try:
                self._run = wandb.init(mode=where, id=own_id, **arguments)  # type: ignore[arg-type]
                return
            except Exception as error:  # W&B's exceptions have no common base class, and none may stop a trial
                _LOG.warning("W&B could not start run %s in mode %s (%s); %s", own_id, where, error, action)
                wandb.teardown()
        _LOG.warning("trial %s is not logged to W&B; its results are in the local files only", name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log the metrics of one epoch to the W&B run; only numbers and strings in `values` are logged.

        `step` is the number of the epoch over all stages, from 1.
        """
        if self._run:
            self._run.log({k: v for k, v in values.items() if isinstance(v, int | float | str)}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Add `values`, the metrics and sizes of a measured point, to the summary of the W&B run."""
        if self._run:
            self._run.summary.update(dict(values))

    def finish(self) -> None:
        if self._run:
            self._run.finish()

    def files(self) -> list[Path]:
        """Return the local folders of the W&B run, one for each start of its trial; [] if W&B could not start the run.

        Call `finish` first, so that the files are complete.
        """
        return sorted(Path(self._folder, "wandb").glob(f"*run-*-{self._run.id}")) if self._run else []
