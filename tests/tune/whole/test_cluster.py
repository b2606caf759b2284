"""Cluster recipes: the shipped files suit Ray, KubeRay and SLURM, and a study survives the death of a node."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.machines import PATIENCE_S, TOKEN, wait_until
from tests.support.paths import ROOT
from trainables.config.compose import compose
from trainables.config.flags import flags_to_overrides
from tune.arguments import parser
from tune.study.events import EpochReported, TrialRestored
from tune.study.journal import read_events, read_state

FOLDER = ROOT / "tune" / "cluster"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sh", ".yaml"))
# fields of KubeRay's RayJobSpec and RayClusterSpec (ray-operator/apis/ray/v1, release 1.5)
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector"),
    *("submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode"),
    *("entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished"),
    *("shutdownAfterJobFinishes", "suspend"),
}
RAY_CLUSTER = {
    *("authOptions", "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"),
    *("autoscalerOptions", "headServiceAnnotations", "suspend", "gcsFaultToleranceOptions"),
}


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def commands() -> dict[str, list[str]]:
    """Return the arguments of each tune/run.py command in a comment or an entrypoint of the shipped files."""
    found = {}
    for path in FILES:
        comment_lines = [line for line in path.read_text().splitlines() if path.suffix != ".sh" or line.startswith("#")]
        text = re.sub(r"\\?\n *(#)? +", " ", "\n".join(comment_lines))  # join continued lines
        for i, words in enumerate(re.findall(r"(?:tune/run\.py|slurm\.sh)((?: +(?:--\w|[\w./]+=)[^\"\n]*))", text)):
            found[f"{path.name}:{i}"] = shlex.split(words.split(" runtimeEnvYAML")[0])
    return found


@pytest.mark.slow
def test_every_command_shown_uses_flags_that_exist() -> None:
    command_lines = commands()
    assert {name.split(":")[0] for name in command_lines} == {"aws.yaml", "job_env.yaml", "rayjob.yaml", "slurm.sh"}
    for name, words in command_lines.items():
        options, rest = parser("").parse_known_args([w for w in words if w != "..."])
        compose(flags_to_overrides(rest))
        if options.name:
            assert Path(options.storage).is_absolute(), f"{name}: a job's folder is not the one it was typed in"


def test_aws_cluster_passes_rays_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(load("aws.yaml"))
    validate_config(filled)
    assert filled["max_workers"] == 8
    started = filled["head_start_ray_commands"] + filled["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in started if "ray start" in line)


def test_ray_job_has_the_fields_that_kuberay_knows() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert set(spec) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    constraint = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert constraint and cluster["rayVersion"] == constraint[1]
    assert f"rayproject/ray:{constraint[1]}-" in (FOLDER / "rayjob.yaml").read_text()
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    storage = parser("").parse_known_args(shlex.split(spec["entrypoint"])[2:])[0].storage
    for pod in pods:
        container = pod["template"]["spec"]["containers"][0]
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert any(storage.startswith(path + "/") for path in paths), "the storage is on no shared volume"
        assert [v["name"] for v in pod["template"]["spec"]["volumes"]] == [m["name"] for m in container["volumeMounts"]]
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]


def test_job_environment_is_one_that_ray_accepts() -> None:
    from ray.runtime_env import RuntimeEnv

    assert RuntimeEnv(**load("job_env.yaml"))["excludes"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_credential(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\bA(KIA|SIA)[A-Z0-9]{12}", text)
    assert not re.search(r"(?i)(secret_access_key|password|auth_token|RAY_AUTH_TOKEN)[\"']?\s*[:=]\s*[\"']?\w{8}", text)


# SLURM without a scheduler: srun, scontrol, ray and python are replacements on PATH, the script is the real one.
FAKES = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" >> "$FAKES/scontrol.log"',
    # `ray symmetric-run`: the command on the head node is its child, and its exit status is passed on
    "ray": """if [ "$1" = get-auth-token ]; then umask | tail -c 4 > "$FAKES/created"; mkdir -p "$HOME/.ray"
echo token > "$HOME/.ray/auth_token"; exit; fi
echo "$@" > "$FAKES/ray.log"; while [ "$1" != -- ]; do shift; done; shift; "$@"; exit $?""",
    # the driver: ends with 130 at SIGTERM, as tune/run.py does
    "python": """echo "$@" > "$FAKES/driver.log"; [ "$DRIVER" = complete ] && exit 0
trap 'exit 130' TERM; touch "$FAKES/running"; while :; do sleep 0.02; done""",
}


@pytest.fixture
def slurm(tmp_path: Path):
    """Start slurm.sh as SLURM would, with a temporary HOME; return its process."""
    (tmp_path / "bin").mkdir()
    for name, body in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"HOME": str(tmp_path), "ASC_TUNE_VENV": str(tmp_path), "FAKES": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "3"}
    environment |= {"TMPDIR": str(tmp_path)}

    def start(driver: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(FOLDER / "slurm.sh"), "--space", "kd", "--name", "my study", *words],
            env=environment | {"DRIVER": driver} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_slurm_runs_the_driver_on_a_cluster_of_all_nodes(slurm, tmp_path: Path) -> None:
    output, _ = (process := slurm("complete")).communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    driver = (tmp_path / "driver.log").read_text()
    address = re.fullmatch(r"tune/run\.py --address (\S+:24711) --resume auto --space kd --name my study\n", driver)
    assert address, driver
    started = (tmp_path / "ray.log").read_text()
    assert started.startswith(f"symmetric-run --address {address[1]} --min-nodes 2 --num-cpus 3 -- ")
    assert not (tmp_path / "scontrol.log").exists()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_slurm_trusts_no_file_in_the_temporary_folder_and_no_word(slurm, tmp_path: Path) -> None:
    planted = tmp_path / "asc-tune-4711.pid"
    planted.write_text("1\n")
    before = os.umask(0)  # the token must be private at once, whatever the umask is
    try:
        word = f"$(touch {tmp_path}/hit); `touch {tmp_path}/hit` 'x\" *"
        process = slurm("complete", word, "-n", SLURM_SUBMIT_DIR=str(tmp_path))
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        os.umask(before)
    assert process.returncode == 0, output
    assert (tmp_path / "driver.log").read_text().endswith(f" --name my study {word} -n\n")
    assert not (tmp_path / "hit").exists()
    assert planted.read_text() == "1\n", "a file of another user was used or deleted"
    assert (tmp_path / "created").read_text() == "077\n", "the token was created readable for all users"
    assert not list(tmp_path.glob("asc-tune.*")), "the private folder was left"


@pytest.mark.parametrize("number", ["a[$(touch HIT)]", "", "12 x"])
def test_slurm_refuses_a_job_number_that_is_none(slurm, tmp_path: Path, number: str) -> None:
    number = number.replace("HIT", str(tmp_path / "hit"))
    process = slurm("complete", SLURM_JOB_ID=number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode not in (0, None) and "SLURM_JOB_ID" in output
    assert not (tmp_path / "hit").exists() and not (tmp_path / "driver.log").exists()


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_stops_the_driver_and_requeues_before_the_time_limit(slurm, tmp_path: Path, sent, requeued) -> None:
    process = slurm("trains")
    until = time.monotonic() + PATIENCE_S
    while not (tmp_path / "running").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 4711\n" if requeued else "")


@pytest.mark.slow
def test_slurm_asks_for_the_signal_and_ray_knows_the_flags() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    text = (FOLDER / "slurm.sh").read_text()
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.M))
    assert directives["signal"] == "B:USR1@120"
    assert "requeue" in directives
    assert directives["ntasks-per-node"] == "1"
    known = {option for command in (symmetric_run, start) for p in command.params for option in p.opts}
    assert {"--address", "--min-nodes", "--num-cpus"} <= known


# A study on two nodes. The tests have their own token, so that the user's token does not matter.


@pytest.fixture
def two_nodes() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "tests/support/two_nodes.py"],
        cwd=ROOT,
        env=os.environ | TOKEN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.communicate(timeout=PATIENCE_S)  # closes its input


def gauges(addresses: list[str]) -> dict[tuple[str, str], float]:
    """Return (name, trial or status) -> value of our gauges, from the metrics of all nodes."""
    found = {}
    for address in addresses:
        with urllib.request.urlopen(address, timeout=60) as answer:
            text = answer.read().decode()
        for name, labels, value in re.findall(r"^ray_asc_tune_(\w+){(.*)} (\S+)$", text, flags=re.M):
            tag = re.search(r'(?:trial|status)="([^"]*)"', labels)
            found[name, tag[1] if tag else ""] = float(value)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_node_costs_an_epoch_at_most_and_the_study_finishes(two_nodes, tiny_tau: Path, tmp_path: Path) -> None:
    cluster = json.loads(two_nodes.stdout.readline())
    study = tmp_path / "X"
    options = ["--space", "kd_prune", "--name", "X", "--storage", str(tmp_path), "--num-samples", "1"]
    options += ["--scheduler", "fifo", "--address", cluster["address"], f"--dataset_dir={tiny_tau}"]
    options += ["--checkpoint-interval", "0"]
    options += ["frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"]
    options += ["train.epochs=40", "train.batch_size=8", "prune.epochs=1", "teacher.train.epochs=1"]
    options += ["teacher.model.hidden_size=32", "teacher.model.layers=1", "teacher.model.heads=2"]
    driver = subprocess.Popen(
        [sys.executable, "tune/run.py", *options],
        cwd=ROOT,
        env=os.environ | TOKEN | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: any(t.epochs >= 2 for t in read_state(study).trials.values()), driver)
    wait_until(lambda: ("macs", "t0000") in gauges(cluster["metrics"]), driver)
    before = gauges(cluster["metrics"])
    two_nodes.stdin.write("kill\n")
    two_nodes.stdin.flush()
    assert two_nodes.stdout.readline() == "killed\n"
    output, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, output

    events, state = list(read_events(study)), read_state(study)
    assert [t.status for t in state.trials.values()] == ["complete"]
    assert sum(isinstance(e, TrialRestored) for e in events) == 1, "the trial did not run on the node that died"
    results = [e for e in events if isinstance(e, EpochReported)]
    trained = [e.epochs for e in results]
    assert sorted(set(trained)) == list(range(1, trained[-1] + 1))
    assert len(trained) - len(set(trained)) == state.trials["t0000"].repeated <= 1, "more than one epoch was repeated"
    assert before["trials", "running"] == 1
    for figure in ("val_macro_avg_acc", "macs"):
        assert before[figure, "t0000"] in [e.figures[figure] for e in results]
    assert before["epochs", "t0000"] in trained
