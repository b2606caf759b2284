"""Connect to a Ray cluster, or start Ray on this machine, and restore the signal handling afterwards."""

import logging
import os
import signal
import socket

import ray
from rich.console import Console

from tune.checks import check_resource
from tune.study.manifest import StudyError


def start_ray(address: str | None, console: Console) -> None:
    """Connect to Ray at `address`, or start it on this machine (None), unless this process is connected already.

    StudyError if the cluster does not answer or Ray does not start.
    """
    if ray.is_initialized():
        return
    # the journal replaces Ray's own snapshots, which grow with the number of trials
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # RunConfig names ours
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before its first metric
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines show the progress
    if (address or "").startswith("ray://"):
        raise StudyError(
            f"--address {address}: Ray's client runs the search on the cluster, where the study's folder is not; "
            "submit the command with `ray job submit`, or run it on a machine of the cluster with --address auto"
        )
    try:
        host, _, port = (address or "").rpartition(":")
        if host:  # test the port first: Ray itself retries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        own = {} if address else {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        context = ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        if address:
            raise StudyError(
                f"--address {address}: no Ray cluster answers there ({error}); start one with `ray start --head`, or "
                "correct the address"
            ) from error
        raise StudyError(
            f"Ray does not start on this machine ({error}); see /tmp/ray/session_latest/logs, then repeat the command"
        ) from error
    treat_sigterm_as_ctrl_c()
    line = f"http://{context.dashboard_url} (its token: ray get-auth-token)" if context.dashboard_url else "not running"
    console.print(f"dashboard: {line}", highlight=False)


def check_cluster(cpus_per_trial: float, gpus_per_trial: float) -> None:
    """Raise StudyError if the cluster that Ray is connected to cannot give a trial its resources."""
    total = ray.cluster_resources()
    check_resource("cpu", cpus_per_trial, total.get("CPU", 0), "the cluster")
    check_resource("gpu", gpus_per_trial, total.get("GPU", 0), "the cluster")


def treat_sigterm_as_ctrl_c() -> None:
    """Handle SIGTERM like SIGINT: Ray ends a search normally only after SIGINT.

    Call it again after `ray.init`, which installs its own SIGTERM handler.
    """
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
