"""Connect to a Ray cluster, or start Ray on this machine, and give signals back their meaning."""

import logging
import os
import signal
import socket

import ray
from rich.console import Console

from tune.checks import check_resource
from tune.study.manifest import StudyError


def start_ray(address: str | None, console: Console) -> None:
    """Connect to, or start, Ray, unless that was done before; StudyError where it does not answer or start."""
    if ray.is_initialized():
        return
    os.environ.setdefault(
        "TUNE_GLOBAL_CHECKPOINT_S", "1000000000"
    )  # the journal is our snapshot; Ray's grow with trials
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # ours are named in RunConfig
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before its first metric
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines tell the progress
    if (address or "").startswith("ray://"):
        raise StudyError(
            f"--address {address}: Ray's client runs the search on the cluster, where the study's folder is not; "
            "submit the command with `ray job submit`, or run it on a machine of the cluster with --address auto"
        )
    try:
        host, _, port = (address or "").rpartition(":")
        if host:  # asked first: Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        own = {} if address else {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        context = ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"--address {address}: no Ray cluster answers there" if address else "Ray does not start on this machine"
        raise StudyError(f"{what} ({error})") from error
    take_sigterm_for_ctrl_c()
    line = f"http://{context.dashboard_url} (its token: ray get-auth-token)" if context.dashboard_url else "not running"
    console.print(f"dashboard: {line}", highlight=False)


def check_cluster(cpus_per_trial: float, gpus_per_trial: float) -> None:
    """StudyError when the cluster that Ray is connected to cannot give a trial its resources."""
    total = ray.cluster_resources()
    check_resource("cpu", cpus_per_trial, total.get("CPU", 0), "the cluster")
    check_resource("gpu", gpus_per_trial, total.get("GPU", 0), "the cluster")


def take_sigterm_for_ctrl_c() -> None:
    """Ray ends a search in order at SIGINT only, and `ray.init` takes SIGTERM for a crash: so this is said again
    after it."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
