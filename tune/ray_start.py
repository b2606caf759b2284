"""Connect to a Ray cluster or start Ray on this machine; check the cluster's resources; direct Ray's log to a file."""

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker  # private; `stop_ray` explains why it is needed
from ray.tune.execution import class_cache  # private; has no option for the variables that it passes to actors
from rich.console import Console
from rich.markup import escape

from analysis.manifest import StudyManifest
from data.files import make_folder
from data.signals import handle_signals
from trainables.config.schema import TrialConfig
from tune.cluster.access import OwnPath, check_access, on_loopback, private_token
from tune.cluster.messages import log_messages
from tune.planning.checks import check_resource, resolve_gpus
from tune.search.failures import reason_of
from tune.study.manifest import StudyError

RAY_LOG = ".ray.log"  # file in the study's folder on this machine: what Ray logs in the driver, such as tracebacks


def start_ray(address: str | None, console: Console, log: Path, allow_open: bool = False) -> None:
    """Connect this process to the Ray cluster at `address`, or start Ray on this machine if `address` is None.

    Print the address of Ray's dashboard on `console`; go on without a dashboard if it does not start. `log` is the
    file to which `log_to_file` directed Ray's log: messages tell the user to look there. If Ray does not start on this
    machine, which may be busy, try once more. Do nothing if the process is connected already. StudyError if the cluster
    does not answer, if Ray does not start, or if Ray accepts commands without a token and `allow_open`
    (--allow-open-cluster) is False.
    """
    if ray.is_initialized():
        return
    # the journal replaces Ray's own snapshots, which grow with the number of trials
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # RunConfig names our callbacks
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before its first metric
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines show the progress
    # Ray Tune would put these variables into the runtime environment of its actors, which Ray's logs show. Workers on
    # this machine inherit them; other machines have their own
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]
    )
    os.environ["PYTHONSAFEPATH"] = "1"  # Ray's processes must not import modules from the current folder
    if (address or "").startswith("ray://"):
        raise StudyError(
            f"--address {address}; expected auto or host:port, because with Ray's client (ray://) only the search "
            "would run on the cluster, and the study's folder would be on this machine: run the whole command on the "
            "cluster (submit it with `ray job submit`, or start it on a machine of the cluster with --address auto)"
        )
    try:
        if address:
            url = connect(address)
        else:
            try:
                url = start_here()
            except Exception as error:  # Ray raises many classes, also Exception itself
                ray.shutdown()
                console.print(
                    f"[yellow]Ray did not start ({escape(reason_of(error))}); trying once more[/yellow]",
                    highlight=False,
                    soft_wrap=True,
                )
                url = start_here()
    except SystemExit as error:  # during `ray.init`, SIGTERM has a handler of Ray's, which raises this
        raise KeyboardInterrupt from error
    except Exception as error:
        logging.getLogger("ray").error("Ray did not start", exc_info=error)
        if address:
            raise StudyError(
                f"--address {address}: no Ray cluster answers there ({reason_of(error)}); expected the address of a "
                "running cluster: start one with `ray start --head`, or correct the address"
            ) from error
        raise StudyError(
            f"Ray does not start on this machine ({reason_of(error)}): find the cause in {log} and in "
            "/tmp/ray/session_latest/logs, then repeat the command"
        ) from error
    finally:
        handle_signals()
    check_access(address, allow_open, console)
    line = f"http://{url} (the command `ray get-auth-token` prints its token)" if url else "not running"
    if not url and not address:
        line += f"; the search does not need it (the cause is in {escape(str(log))} or /tmp/ray/session_latest/logs)"
    console.print(f"dashboard: {line}", highlight=False, soft_wrap=True)


def connect(address: str) -> str | None:
    """Connect to the Ray cluster at `address` (auto or host:port); return the address of its dashboard, if any."""
    host, _, port = address.rpartition(":")
    if host:  # test the port first: Ray itself retries for minutes
        socket.create_connection((host, int(port)), timeout=10).close()
    private_token()
    return ray.init(address, job_config=OwnPath(), logging_level=logging.ERROR, log_to_driver=False).dashboard_url


def start_here() -> str | None:
    """Start Ray on this machine; return the address of its dashboard, None or "" if the dashboard did not start."""
    private_token(create=True)
    # Ray's processes inherit this mask. Otherwise a SIGTERM to all processes of a job (scancel, systemd, timeout) would
    # end Ray before the driver, which needs it to end in order. The caller unblocks SIGTERM here (`handle_signals`)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    with on_loopback():
        # `include_dashboard` is not set: with True, `ray.init` fails if the dashboard does
        return ray.init("local", dashboard_host="127.0.0.1", job_config=OwnPath(), **quiet).dashboard_url


class _CoreWorker:
    """Ray's core worker, with the handlers of `handle_signals` also after its end: it sets SIGTERM's to the default."""

    def __init__(self, core_worker: Any):
        self._core_worker = core_worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core_worker, name)

    def shutdown_driver(self) -> None:
        self._core_worker.shutdown_driver()
        handle_signals()


def stop_ray() -> None:
    """Disconnect this process from Ray, and end Ray if it was started here.

    SIGTERM must not end the process meanwhile: after its core worker, Ray ends its processes, which takes seconds.
    """
    worker: Any = ray_worker.global_worker
    if threading.current_thread() is threading.main_thread() and hasattr(worker, "core_worker"):
        worker.core_worker = _CoreWorker(worker.core_worker)
    try:
        ray.shutdown()
    except KeyboardInterrupt:
        ray.shutdown()  # end what the first call has left
        raise


def log_to_file(path: Path) -> None:
    """Add what Ray logs and reports in this process to the file at `path`, instead of printing it on the terminal."""
    make_folder(path.parent)
    log_messages()
    handler = logging.FileHandler(path, delay=True)  # no file without a message
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("ray")
    for other in list(logger.handlers):
        logger.removeHandler(other)
        other.close()
    logger.addHandler(handler)


def on_cluster(manifest: StudyManifest) -> StudyManifest:
    """Return `manifest` with train.device and the number of GPUs of a trial, chosen for the connected Ray cluster.

    StudyError if the cluster has fewer CPUs or GPUs than one trial reserves.
    """
    manifest = with_gpus(manifest, ray.cluster_resources().get("GPU", 0.0))
    check_cluster(manifest.requested.cpus_per_trial, manifest.requested.gpus_per_trial or 0.0)
    return manifest


def with_gpus(manifest: StudyManifest, available: float) -> StudyManifest:
    """Return `manifest` with train.device and the number of GPUs of a trial, chosen for `available` GPUs."""
    config = TrialConfig.from_flat(manifest.resolved.config)
    config, gpus = resolve_gpus(config, manifest.requested.gpus_per_trial, available)
    return manifest.changed(config=config.flat(), gpus_per_trial=gpus)


def check_cluster(cpus_per_trial: float, gpus_per_trial: float) -> None:
    """Raise StudyError if the Ray cluster of this process has fewer CPUs or GPUs than one trial reserves."""
    total = ray.cluster_resources()
    check_resource("cpu", cpus_per_trial, total.get("CPU", 0), "the cluster")
    check_resource("gpu", gpus_per_trial, total.get("GPU", 0), "the cluster")
