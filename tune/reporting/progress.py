"""The lines that a driver prints while it runs a study: measured networks, and trials that stopped, failed or crashed.

The class ProgressLines prints them. It is a reducer: the study's log (tune/study/log.py) passes each event to it. It
must be attached to the log after the replay of earlier events, so that it prints lines for new events only.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tune.reporting.front import RunningFront
from tune.study.events import Event, PointMeasured, TrialEnded
from tune.study.state import StudyState


class ProgressLines:
    """Reducer that prints a line for each measured network, and for each trial that stopped, failed or crashed.

    `state` (a StudyState) and `front` (a RunningFront) must be attached to the same log earlier than this reducer, so
    that they contain the event that is printed.
    `n_trials` is the requested number of trials; `config` is the flat configuration that the sampled values override.
    `log` is the file with the tracebacks of crashes, which the lines of crashed trials name if it exists. `teacher` is
    the validation accuracy of the best teacher (None: not known). The first distilled network that is more accurate
    gets a warning, because a student seldom learns from a teacher that is worse than itself.
    """

    def __init__(
        self,
        console: Console,
        state: StudyState,
        front: RunningFront,
        n_trials: int,
        config: Mapping[str, Any],
        log: Path,
        teacher: float | None = None,
    ):
        self._console, self._state, self._front = console, state, front
        self._n_trials, self._config, self._log, self._teacher = n_trials, config, log, teacher
        self._started, self._ended_before = time.monotonic(), state.n_ended

    def apply(self, event: Event) -> None:
        if isinstance(event, PointMeasured):
            self._print_point(event)
        elif isinstance(event, TrialEnded) and event.outcome != "completed":
            trial = self._state.trials[event.trial]
            reason = f": {escape(str(trial.reason))}" if trial.reason else ""
            line = f"{escape(trial.name)} {trial.status} after {trial.epochs} epochs{reason}"
            line += (
                f" (tracebacks: {escape(str(self._log))})" if event.outcome == "crashed" and self._log.exists() else ""
            )
            self._print(line if event.outcome == "stopped" else f"[red]{line}[/red]")

    def warn(self, message: str) -> None:
        """Print the warning `message` about a worker in yellow, and the path of the log file with its traceback."""
        text = escape(f"{message} (traceback: {self._log})")
        self._console.print(f"[yellow]{text}[/yellow]", highlight=False, soft_wrap=True)

    def _print_point(self, event: PointMeasured) -> None:
        point, trial = event.point, self._state.trials[event.trial]
        config = dict(self._config) | trial.values
        steps = len(config.get("prune.ratios") or ()) or config.get("prune.n_steps") or 0
        mark = "" if point["feasible"] else " [yellow]over the limits[/yellow]"
        steps = len(trial.widths) - 1 if trial.widths else steps
        accuracy = "" if point["val_macro_avg_acc"] is None else f"{point['val_macro_avg_acc']:6.1%} validation, "
        self._print(
            f"{escape(trial.name)} step {point['step']}/{steps}: {accuracy}"
            f"{point['macs'] / 1e6:6.2f} M MACs, {point['params'] / 1e3:5.1f} k params{mark}",
            ending=int(point["step"] == steps),
        )

        self._compare_with_teacher(trial.name, point, config)

    def _compare_with_teacher(self, name: str, point: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        accuracy, distils = point["val_macro_avg_acc"], config.get("distill.kd_alpha", 1) < 1
        if self._teacher is not None and distils and accuracy is not None and accuracy > self._teacher:
            self._console.print(
                f"[yellow]{escape(name)} ({accuracy:.1%} validation) is more accurate than its teacher "
                f"({self._teacher:.1%}), so distillation from it is unlikely to help: name a better teacher "
                "(distill.teacher_ckpts), use pretrained weights (teacher=...), or none (distill.kd_alpha=1)[/yellow]",
                highlight=False,
                soft_wrap=True,
            )
            self._teacher = None  # warn once

    def _print(self, line: str, ending: int = 0) -> None:
        elapsed, ended = time.monotonic() - self._started, self._state.n_ended + ending
        ended_now = ended - self._ended_before  # trials that ended since this driver started
        left_s = elapsed / ended_now * max(0, self._n_trials - ended) if ended_now > 0 else None
        eta = "" if left_s is None else f", about {left_s / 60:.0f} min left"
        self._console.print(
            f"[dim]{elapsed / 60:5.1f} min[/dim] {line} [dim]| {ended}/{self._n_trials} trials, "
            f"front {len(self._front.values)}{eta}[/dim]",
            highlight=False,
            soft_wrap=True,
        )
