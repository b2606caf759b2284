"""`--dry-run`: feasible shares, sizes, times of measured steps, and the estimated hours."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from analysis.manifest import Requested
from ascmodels.config.limits import Limits
from search_spaces import Space, load_space, space_from_dict
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.step_time import StepTime, random_training
from tune.planning.cost import Rungs, duration, makespan, trial_hours, until_stopped, wilson
from tune.planning.dry_run import draw, dry_run, nothing_fits, print_study_hours
from tune.run import main

SMALL = ["frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "train.batch_size=8"]
ASKED = Requested(name="planned", num_samples=5)
WIDTHS = space_from_dict({"name": "widths", "parameters": {"student.base_channels": {"choice": [8, 24]}}})


def small(space: Space, tiny_tau: Path, tmp_path: Path, *more: str) -> TrialConfig:
    config = compose([*space.base, *SMALL, *more])
    return replace(config, data=replace(config.data, dataset_dir=str(tiny_tau), cache_dir=str(tmp_path / "cache")))


def test_wilson_interval() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    low, high = wilson(200, 200)
    assert (low, high) == pytest.approx((0.98116, 1.0), abs=1e-5)


@pytest.mark.slow
def test_the_share_of_a_space_of_which_half_fits() -> None:
    """The space has two equally likely widths, and the limit lies between their sizes."""
    base = compose(["student=cp_mobile", *SMALL])
    macs = {c.student.base_channels: n[0][0] for c, n in draw(WIDTHS, base.flat(), 0, 8).feasible}
    assert macs[8] < macs[24]
    between = replace(base, limits=Limits(macs=(macs[8] + macs[24]) / 2))
    draws = draw(WIDTHS, between.flat(), 1, 40)
    assert draws.total == 40
    assert {c.student.base_channels for c, _ in draws.feasible} == {8}
    assert draws.rejected == {"over the limits at every stage": 40 - len(draws.feasible)}
    low, high = wilson(len(draws.feasible), 40)
    assert low < 0.5 < high
    assert '"student.base_channels": 24' in draws.examples["over the limits at every stage"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(macs=1000), "the fewest MACs are"),
        (Limits(bytes=10), "the fewest bytes are"),
    ],
)
def test_a_space_without_a_feasible_point_says_which_limit(limits: Limits, words: str) -> None:
    base = replace(compose(["student=cp_mobile", *SMALL]), limits=limits)
    error = nothing_fits(draw(WIDTHS, base.flat(), 0, 5), limits)
    assert words in error
    assert error.count("the limit is") == 1


def test_configurations_that_cannot_be_built_are_counted() -> None:
    space = space_from_dict({"name": "s", "parameters": {"distill.kd_alpha": {"choice": [0.5, 2.0]}}})
    draws = draw(space, compose(["student=cp_mobile", *SMALL]).flat(), 0, 20)
    assert 0 < draws.rejected["cannot be built or pruned"] < 20
    assert draws.total == 20
    assert "expected a weight in [0, 1]" in draws.examples["cannot be built or pruned"]


@pytest.mark.slow
def test_dry_run_of_a_real_space_tells_and_keeps_nothing(tiny_tau: Path, tmp_path: Path) -> None:
    space = load_space("kd_prune")
    config = small(space, tiny_tau, tmp_path, "train.epochs=8", "train.min_steps=0", "prune.epochs=2")
    output = StringIO()
    found = dry_run(space, config, ASKED, Console(file=output, width=200), n_draws=10)
    text = output.getvalue()
    for words in ("of 10 random samples", "measured on", "mo_asha, at best"):
        assert words in text
    assert "estimate for a trial on 30 clips, validated on 20, 8 dense epochs" in text
    assert found["feasible"] + sum(found["rejected"].values()) == found["draws"]
    assert all(times.step_s > 0 and times.validation_s > 0 for _, times in found["steps"])
    whole, early = zip(*found["study_hours"].values(), strict=True)
    assert list(whole) == sorted(whole, reverse=True)
    assert all(e <= w for w, e in zip(whole, early, strict=True))
    assert min(found["trial_hours"]) <= whole[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "epochs", "shown"),
    [
        ("mo_asha", 4, "(after each prune step)"),
        ("mo_asha", 8, "(epochs 6, after each prune step)"),
        ("asha", 8, "(epochs 6)"),
        ("asha", 4, None),
        ("fifo", 8, None),
    ],
)
def test_rungs_are_shown_as_far_as_there_are_any(
    scheduler: str, epochs: int, shown: str | None, tiny_tau: Path, tmp_path: Path
) -> None:
    """A short dense phase has no rungs, so no list of epochs and no column for early stopping is printed."""
    space = load_space("prune")
    config = small(space, tiny_tau, tmp_path, f"train.epochs={epochs}", "train.min_steps=0", "prune.epochs=1")
    printed = StringIO()
    dry_run(space, config, replace(ASKED, scheduler=scheduler), Console(file=printed, width=200), n_draws=1)
    text = " ".join(printed.getvalue().split())
    assert "(epochs ," not in text and ", )" not in text and "()" not in text
    assert ("at best" in text) == (shown is not None)
    if shown:
        assert shown in text


def test_a_space_without_prune_steps_has_no_rung_after_them() -> None:
    printed = StringIO()
    rungs = Rungs("mo_asha", 4)  # no rung in 4 epochs, so only those after prune steps
    for stages, shown in (([1.0], False), ([1.0, 0.5], False), ([1.0, 0.5, 0.5], True)):
        console = Console(file=printed, width=200)
        print_study_hours(replace(ASKED, scheduler="mo_asha"), [stages], rungs, False, console)
        assert ("promotes" in printed.getvalue()) is shown, stages


@pytest.mark.slow
def test_the_command_plans_a_study_and_leaves_nothing(tiny_tau: Path, tmp_path: Path, capsys) -> None:
    storage = tmp_path / "runs"
    words = ["--space", "prune", "--storage", str(storage), f"--dataset_dir={tiny_tau}", *SMALL, "--dry-run"]
    assert main([*words, "augment.freq_mask=4", "train.epochs=8"]) == 0
    assert "estimate for 12 trials" in capsys.readouterr().out
    assert main([*words, "augment.freq_mask=4", "--limits", "macs=1000"]) == 1
    assert main([*words, "frontend.hop_length=10000000"]) == 2
    assert capsys.readouterr().out.count("error:") == 1
    assert not storage.exists()


def test_a_measured_step_trains_as_a_trial_does(tmp_path: Path) -> None:
    """A step changes the network, a validation does not; the batch size is that of the configuration."""
    config = compose(["student=cp_mobile", "student.base_channels=8", *SMALL])
    with random_training(config) as training:
        before = [p.detach().clone() for p in training._model.parameters()]
        assert training.validate() == 64
        assert all(bool((a == b).all()) for a, b in zip(before, training._model.parameters(), strict=True))
        assert training.step() == 8
        assert any(bool((a != b).any()) for a, b in zip(before, training._model.parameters(), strict=True))
        folder = training.train.cache.folder
    assert not folder.exists()


def test_hours_of_a_trial() -> None:
    config = compose(["train.epochs=10", "train.batch_size=4", "prune.ratios=[0.5]", "prune.epochs=2"])
    steps = [(100, StepTime(1.0, 0.01, 9, 4)), (300, StepTime(3.0, 0.03, 9, 4))]
    # 20 clips: 5 steps; at 200 MACs 2 s a step and 0.02 s a clip; smaller networks take as long as the smallest
    assert trial_hours(config, [200, 50], (20, 100), steps) == pytest.approx(
        [10 * (5 * 2 + 100 * 0.02) / 3600, 2 * (5 * 1 + 100 * 0.01) / 3600]
    )


def test_makespan_is_that_of_a_queue() -> None:
    assert makespan([3, 1, 1, 1], 1) == 6
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4  # the long task starts last
    assert makespan([2, 2], 8) == 2


def test_early_stopping_by_lot_has_the_mean_that_halving_has() -> None:
    rungs = Rungs("mo_asha", 16)
    assert rungs.epochs == [11]
    stages = [16.0, 2.0, 2.0]  # one hour for each epoch
    assert rungs.hours(stages) == [11, 18]  # the end of the last stage saves nothing
    expected = 11 / 2 + 18 / 4 + 20 / 4
    rng = np.random.default_rng(0)
    assert np.mean([until_stopped(stages, rungs, rng) for _ in range(20_000)]) == pytest.approx(expected, rel=0.02)
    assert not Rungs("fifo", 16)
    assert until_stopped(stages, Rungs("fifo", 16), rng) == 20


def test_durations_have_a_fitting_unit() -> None:
    assert [duration(h) for h in (1234.5, 0.5, 0.01)] == ["1,234.5 h", "30.0 min", "36.0 s"]
