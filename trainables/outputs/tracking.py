"""Logging of trials to Weights & Biases (W&B); no other file imports `wandb`.

Each trial is a W&B run with its configuration, the metrics of each epoch, and the metrics and sizes of its points. A
complete search is one more run of the same group, with the front as a table (`log_front`).
Without an API key, runs are logged offline; `wandb sync <study>/wandb/offline-run-*` uploads them later.
"""

import http.client
import logging
import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib import wbauth

from data.files import make_folder
from data.untrusted import credentials_in, printable
from trainables.outputs.records import PROJECT

ANSWER_S = 5.0  # timeout of each read from W&B's server when it is tested
START_S = 30.0  # time for the start of a run before it is logged offline
FINISH_S = 60.0  # time for the upload of the last metrics of a run; `wandb sync` uploads what is left
_LOG = logging.getLogger(__name__)


def choose_mode(warn: Callable[[str], None] = _LOG.warning) -> str:
    """Return the W&B mode for new runs, such as `online` or `offline`.

    The environment variable WANDB_MODE has priority, then a mode other than `online` in W&B's settings files (`wandb
    offline`). If neither is set, the mode is `online` if W&B has an API key for its server and the server answers a
    request within seconds, else `offline`. `warn` is called with a message if the settings or the key are invalid, or
    if the server cannot be used. Without a key, no message is needed. The address of the server, the key and the
    proxies are those that W&B itself would use: from the environment, W&B's settings files (`wandb login --host`) and
    ~/.netrc. An address with a user name or a password is never used, because W&B logs the address.

    A study calls this function once. If the server does not answer, W&B's own retries would delay each trial by 30 s.
    """
    chosen = os.environ.get("WANDB_MODE")
    if chosen and chosen != "online":
        return chosen
    try:
        settings = _settings()
        if problem := credentials_in(settings.base_url):
            warn(_offline(f"the address of its server contains {problem} (WANDB_BASE_URL, or its settings files)"))
            return "offline"
        if chosen or settings.mode != "online":
            return chosen or settings.mode
        url = settings.base_url
        key = wbauth.authenticate_session(host=url, source="asc-tune", prompt=False, update_session=False)
    except (ValueError, wandb.Error):  # their text may contain the key
        warn(_offline("its settings or its API key are not valid (environment variables WANDB_*, its settings files)"))
        return "offline"
    if key is None:
        return "offline"
    if failure := _failure(url, settings.http_proxy, settings.https_proxy):
        warn(_offline(f"its server {url} cannot be used ({failure})"))
        return "offline"
    return "online"


def _offline(reason: str) -> str:
    return (
        f"W&B: {reason}, so all runs are logged offline; expected a server that answers: correct the cause before the "
        "next start, and upload these runs with `wandb sync`"
    )


def _settings() -> wandb.Settings:
    """Return W&B's settings from its settings files and from the environment, in the order that W&B uses.

    ValueError or wandb.Error if a value is not valid.
    """
    settings = wandb.Settings(silent=True)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings.settings_system = str(folder / "settings")
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    return settings


def _failure(url: str, http_proxy: str | None, https_proxy: str | None) -> str | None:
    """Return why W&B's server at `url` cannot be used, or None if it can; the request contains no key.

    The proxies are those of W&B's settings; None: those of the environment. An answer such as 401 or 404 is good enough
    (the request has no key), a server error is not. A certificate that Python does not accept is left to W&B, which may
    have other certificates.
    """
    proxies = urllib.request.getproxies() | {k: v for k, v in (("http", http_proxy), ("https", https_proxy)) if v}
    request = urllib.request.Request(
        f"{url}/graphql", b'{"query": "query { viewer { id } }"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open(request, timeout=ANSWER_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP status {error.code}" if error.code >= 500 or error.code == 407 else None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLCertVerificationError) else str(error.reason)
    except OSError as error:
        return str(error) or type(error).__name__
    except (http.client.HTTPException, ValueError) as error:  # their text may contain the address of a proxy
        return type(error).__name__
    return None


class Tracker:
    """The W&B run of one trial, or of a complete search. An error of W&B never stops the trial or the search.

    `folder` is the local folder for W&B's files. A trial that is resumed with the same `run_id` continues its W&B run.
    `name` and `config` are the name and the configuration of the trial, and `group` is the name of its study or the
    kind of a single run. The environment variable WANDB_PROJECT has priority over `project`. `mode` is the W&B mode;
    None: the result of `choose_mode`. The attribute `mode` is the mode in which the run was started.

    The server may not answer, or W&B's background process of a killed trial may still use the run id. The run is then
    logged offline under a new id. If that fails too, the trial is not logged to W&B. Each failure is logged as a
    warning.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        name: str,
        group: str,
        config: Mapping[str, Any],
        project: str = PROJECT,
        mode: str | None = None,
    ):
        make_folder(folder)
        self._folder, self._name = folder, name
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=START_S,
            finish_timeout=FINISH_S,
            x_disable_stats=True,
            git_remote="",  # the address of a checkout's repository may contain a token, which W&B would record
        )
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
        self._run_id: str | None = None
        for where, own_id, action in (
            (mode or choose_mode(), run_id, "starting the run offline under a new id"),
            ("offline", f"{run_id}-{secrets.token_hex(3)}", "continuing without W&B"),
        ):
            self.mode = where
            try:
                self._run = wandb.init(mode=where, id=own_id, **arguments)  # type: ignore[arg-type]
                self._run_id = own_id
                return
            except Exception as error:  # W&B's exceptions have no common base class, and none may stop a trial
                _LOG.warning("W&B could not start run %s in mode %s (%s); %s", own_id, where, _text(error), action)
                self._attempt("end its background process", wandb.teardown)
        _LOG.warning("%s is not logged to W&B; its results are in the local files only", name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log the metrics of one epoch to the W&B run; only numbers and strings in `values` are logged.

        `step` is the number of the epoch over all stages, from 1.
        """
        if run := self._run:
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
            self._attempt("log an epoch", lambda: run.log(numbers, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Add `values`, such as the metrics and sizes of a measured point, to the summary of the W&B run."""
        if run := self._run:
            self._attempt("log a summary", lambda: run.summary.update(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log `rows` as a table with the given `columns` to the W&B run; None is an empty cell."""
        if run := self._run:
            data: Any = [list(row) for row in rows]
            self._attempt(
                "log a table",
                lambda: run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)}),
            )

    def finish(self) -> None:
        """End the W&B run. When this method returns, the run's files are complete."""
        if run := self._run:
            self._run = None
            self._attempt("end the run", run.finish)
            # W&B's background process may still write the file of the run after `finish`; `teardown` waits for its end
            self._attempt("end its background process", wandb.teardown)

    def files(self) -> list[Path]:
        """Return the local folders of the W&B run, one for each start of its trial; [] if W&B could not start the run.

        Call `finish` first, so that the files are complete.
        """
        return sorted(Path(self._folder, "wandb").glob(f"*run-*-{self._run_id}")) if self._run_id else []

    def _attempt(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # `teardown` exits if W&B's background process has failed
            _LOG.warning("%s: W&B could not %s (%s); continuing without it", self._name, what, _text(error))


def log_front(
    folder: Path,
    study: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    mode: str | None = None,
) -> list[Path]:
    """Log the front of a complete search to a W&B run of its own: `rows` as the table "front", and `summary`.

    The run has the name of the `study`, is in the group of its trials, and has the configuration `config`. `folder` and
    `mode` are those of `Tracker`; in the mode "disabled", nothing is done. Return the local folders of the run. An
    error of W&B is logged as a warning.
    """
    mode = mode or choose_mode()
    if mode == "disabled":
        return []
    tracker = Tracker(folder, study, study, study, config, mode=mode)
    tracker.table("front", columns, rows)
    tracker.summary(summary)
    tracker.finish()
    return tracker.files()


def _text(error: BaseException) -> str:
    """Return the text of an error of W&B for the log; for invalid settings only the type, because W&B shows values."""
    return type(error).__name__ if isinstance(error, ValueError) else printable(str(error))
