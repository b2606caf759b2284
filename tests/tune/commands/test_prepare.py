"""The preparation of a study before its first trial: done once, on any machine, and never on changed data."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

import trainables.engine.baseline
from ascmodels.checkpoint import CheckpointError
from data.tau import DatasetError
from search_spaces import Space, space_from_dict
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.baseline import baseline_accuracy, baseline_file, cached_baseline, read_baseline
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.clips import load_clips
from trainables.inputs.fingerprint import DataFingerprint
from tune.prepare import compute_logits, fine_tune_teacher, measure_baseline, prepare, ray_runner

pytestmark = pytest.mark.slow  # prepares data and trains in most tests

ALL = ["measure_baseline", "fine_tune_teacher", "compute_logits"]
SPACE = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})


@pytest.fixture
def config(tiny_tau: Path, tmp_path: Path) -> TrialConfig:
    """Return the configuration of a small student that learns from a tiny teacher, with empty caches."""
    return configured(tiny_tau, tmp_path / "cache")


def configured(root: Path, cache: Path, *words: str) -> TrialConfig:
    return compose(
        [
            *(f"data.dataset_dir={root}", f"data.cache_dir={cache}", "data.num_workers=1"),
            *("frontend.sample_rate=8000", "frontend.n_fft=512", "frontend.win_length=512", "frontend.hop_length=250"),
            *("frontend.n_mels=32", "augment.freq_mask=4", "student.base_channels=16", "train.batch_size=16"),
            *("train.epochs=1", "train.device=cpu", "teacher.train.device=cpu", "teacher.train.epochs=1"),
            *("train.min_steps=0", "teacher.train.min_steps=0", "teacher.model.hidden_size=16"),
            *("teacher.model.layers=1", "teacher.model.heads=2", *words),
        ]
    )


class Recorder:
    """Runs the parts of the preparation in this process and lists their names."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, part: Any, flat: dict[str, Any]) -> Any:
        self.ran.append(part.__name__)
        return part(flat)


def prepared(config: TrialConfig, run: Any = None, space: Space = SPACE, **more: Any) -> tuple[dict[str, Any], str]:
    output = StringIO()
    return prepare(config, space, Console(file=output, width=200), run, **more)[1], output.getvalue()


def test_a_second_start_computes_nothing(config, monkeypatch):
    read, hashed = Path.read_bytes, []

    def read_bytes(self: Path) -> bytes:
        if self.suffix == ".wav":
            hashed.append(self.name)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    first, second = Recorder(), Recorder()
    result, output = prepared(config, first)
    assert first.ran == ALL
    assert len(hashed) == len(set(hashed)) == 50
    again, output_again = prepared(config, second)
    assert second.ran == []
    assert len(hashed) == 50
    assert again == result
    assert output.count("from the cache") == 0
    assert output_again.count("from the cache") == 3
    assert DataFingerprint.from_dict(result["dataset"]["fingerprint"]).n_train == result["dataset"]["n_train"] == 30
    folder = Path(result["config"]["distill.teacher_ckpts"][0])
    shutil.rmtree(folder)  # the teacher is fine-tuned again; it is equal, so its cached logits stay valid
    third = Recorder()
    assert prepared(config, third)[0] == result
    assert third.ran == ["fine_tune_teacher"]


def test_only_what_is_needed_is_run(config, tmp_path, tiny_tau):
    bare = configured(tiny_tau, tmp_path / "cache", "distill.kd_alpha=1")
    run = Recorder()
    result, _ = prepared(bare, run)
    assert run.ran == ["measure_baseline"]
    assert result["teachers"] == []
    for key, parts in (("distill.kd_alpha", ALL[1:]), ("distill.feature_weight", [])):
        space = space_from_dict({"name": "s", "parameters": {key: {"uniform": [0.1, 0.9]}}})
        online = configured(tiny_tau, tmp_path / "cache", "distill.kd_alpha=1", "distill.mode=online")
        again = Recorder()
        assert len(prepared(online if "feature" in key else bare, again, space)[0]["teachers"]) == 1
        assert again.ran == parts


def test_named_teachers_are_not_fine_tuned_again(config, tmp_path, tiny_tau):
    teacher = Path(fine_tune_teacher(config.flat())).rename(tmp_path / "mine.ckpt")
    run = Recorder()
    result, _ = prepared(configured(tiny_tau, tmp_path / "cache", f"distill.teacher_ckpts=['{teacher}']"), run)
    assert run.ran == ["measure_baseline", "compute_logits"]
    assert [t["name"] for t in result["teachers"]] == ["mine.ckpt"]


def test_changed_data_are_refused_before_anything_is_computed(tiny_tau, tmp_path):
    root = Path(shutil.copytree(tiny_tau, tmp_path / "tau"))
    config = configured(root, tmp_path / "cache", "distill.kd_alpha=1")
    known = DataFingerprint.from_dict(prepared(config)[0]["dataset"]["fingerprint"])
    run = Recorder()
    prepared(config, run, known=known)
    table = root / "split_setup" / "split100.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DatasetError, match=r"50 before, 49 now"):
        prepared(config, run, known=known)
    assert run.ran == []
    prepared(config, run)
    assert run.ran == ["measure_baseline"]  # on the other clips


def test_a_part_with_a_fingerprint_refuses_other_data(config):
    result, _ = prepared(config)
    wrong = result["dataset"]["fingerprint"] | {"sound": "0" * 64}
    flat = result["config"]
    for part in (measure_baseline, fine_tune_teacher, compute_logits):
        part(flat | {"fingerprint": result["dataset"]["fingerprint"]})
        part(flat)
        with pytest.raises(DatasetError, match="0" * 16):
            part(flat | {"fingerprint": wrong})


def test_the_baseline_is_fitted_once_for_each_evaluated_part(config, monkeypatch):
    data, cache = load_clips(config, 8000), Path(config.data.cache_dir)
    expected = baseline_accuracy(data.train, data.validation, config.frontend)
    fitted = []

    def fit(*arguments: Any) -> float:
        fitted.append(arguments)
        return baseline_accuracy(*arguments)

    monkeypatch.setattr(trainables.engine.baseline, "baseline_accuracy", fit)
    for _ in range(2):
        assert cached_baseline(data.train, data.validation, config.frontend, cache) == expected
    assert len(fitted) == 1
    assert cached_baseline(data.validation, data.train, config.frontend, cache) != expected
    path = baseline_file(data.train, data.validation, config.frontend, cache)
    for damaged in ("", "[]", '{"macro_avg_acc": "high"}', '{"macro_avg_acc": NaN}', '{"format": 1}'):
        path.write_text(damaged)
        assert read_baseline(path) is None
        assert cached_baseline(data.train, data.validation, config.frontend, cache) == expected


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_parts_run_as_ray_tasks_with_the_trials_resources(cluster, config, tiny_tau, tmp_path):
    pids = []

    def run(part: Any, flat: dict[str, Any]) -> Any:
        def watched(values: dict[str, Any]) -> Any:
            resources = ray.get_runtime_context().get_assigned_resources()
            return part(values), os.getpid(), resources

        result, pid, resources = ray_runner(2, 0)(watched, flat)
        assert resources["CPU"] == 2
        pids.append(pid)
        return result

    remote, _ = prepared(config, run)
    assert len(pids) == 3
    assert os.getpid() not in pids
    here, _ = prepared(configured(tiny_tau, tmp_path / "another"))
    assert remote["baseline"] == here["baseline"]
    assert remote["teachers"] == here["teachers"]
    assert remote["dataset"] == here["dataset"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("error", [CheckpointError, ConfigError, DatasetError, TrainingDiverged, OSError, TypeError])
def test_a_parts_own_error_is_raised(cluster, error):
    def fails(flat: dict[str, Any]) -> None:
        raise error("train.lr=2")

    with pytest.raises(error) as raised:
        ray_runner(1, 0)(fails, {})
    assert type(raised.value) is error
    assert str(raised.value) == "train.lr=2"


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_ends_the_task(cluster, tmp_path):
    started = tmp_path / "pid"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes

    def never_ends(flat: dict[str, Any]) -> None:
        started.with_suffix(".part").write_text(str(os.getpid()))
        started.with_suffix(".part").rename(started)
        while True:
            time.sleep(0.05)

    def interrupt() -> None:
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ray_runner(1, 0)(never_ends, {})
    finally:
        signal.signal(signal.SIGINT, before)
    pid = int(started.read_text())
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
