"""Connect to a Ray cluster or start Ray on this machine, check the cluster's resources, and handle SIGTERM."""

import logging
import os
import signal
import socket

import ray
from rich.console import Console

from tune.checks import check_resource
from tune.study.manifest import StudyError


def start_ray(address: str | None, console: Console) -> None:
    """Connect this process to the Ray cluster at `address`, or start Ray on this machine if `address` is None.

    Print the address of Ray's dashboard on `console`. Do nothing if the process is connected already. StudyError if the
    cluster does not answer or Ray does not start.
    """
    if ray.is_initialized():
        return
    # the journal replaces Ray's own snapshots, which grow with the number of trials
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # RunConfig names our callbacks
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before its first metric
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines show the progress
    if (address or "").startswith("ray://"):
        raise StudyError(
            f"--address {address}; expected auto or host:port, because with Ray's client (ray://) the search would run "
            "on the cluster, which does not have the study's folder: submit the command with `ray job submit`, or run "
            "it on a machine of the cluster with --address auto"
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
                f"--address {address}: no Ray cluster answers there ({error}); expected the address of a running "
                "cluster: start one with `ray start --head`, or correct the address"
            ) from error
        raise StudyError(
            f"Ray does not start on this machine ({error}): find the cause in /tmp/ray/session_latest/logs, then "
            "repeat the command"
        ) from error
    treat_sigterm_as_ctrl_c()
    url = context.dashboard_url
    line = f"http://{url} (the command `ray get-auth-token` prints its token)" if url else "not running"
    console.print(f"dashboard: {line}", highlight=False)


def check_cluster(cpus_per_trial: float, gpus_per_trial: float) -> None:
    """Raise StudyError if the Ray cluster of this process has fewer CPUs or GPUs than one trial reserves."""
    total = ray.cluster_resources()
    check_resource("cpu", cpus_per_trial, total.get("CPU", 0), "the cluster")
    check_resource("gpu", gpus_per_trial, total.get("GPU", 0), "the cluster")


def treat_sigterm_as_ctrl_c() -> None:
    """Convert SIGTERM to SIGINT, the signal of Ctrl-C: only after SIGINT does Ray Tune stop its trials and return.

    Call this function again after `ray.init`, which installs its own SIGTERM handler.
    """
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
