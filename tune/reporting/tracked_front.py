"""Log the front and the summary of a complete search to Weights & Biases (W&B), as a run of the study's group.

track_front(study, state, mode)        # mode: the W&B mode of the study's trials
"""

from pathlib import Path
from typing import Any

from analysis import front
from analysis.results import Study
from trainables.outputs.records import study_label
from trainables.outputs.tracking import log_front
from tune.study.state import StudyState

_DETAILS = ("val_acc/", "val_device_acc/", "val_group_acc/")  # beginnings of columns that the table omits


def track_front(study: Study, state: StudyState, mode: str | None) -> list[Path]:
    """Log the front of `study`, and the summary of its search, to a W&B run; return the local folders of the run.

    The columns of the table are those of front.csv, without the accuracies by scene and by device. `state` is the state
    of the study, and `mode` the W&B mode (None: it is chosen now). An error of W&B is logged as a warning.
    """
    best = front.pareto_points(study)
    columns = [column for column in best.columns if not column.startswith(_DETAILS)]
    rows = [[_plain(value) for value in row] for row in best[columns].to_numpy(object)]
    settings = study.manifest.requested
    config: dict[str, Any] = {"space": study.manifest.resolved.space.get("name"), "num_samples": settings.num_samples}
    config |= {name: getattr(settings, name) for name in ("seeds_per_config", "sampler", "scheduler", "seed")}
    config |= {f"limits.{name}": getattr(study.limits, name) for name in ("macs", "bytes", "precision")}
    place = study.manifest.resolved.remote or str(study.path)
    return log_front(study.path, study_label(place), columns, rows, search_summary(study, state), config, mode)


def search_summary(study: Study, state: StudyState) -> dict[str, float | int]:
    """Return the results and the cost of a search; a result that the study does not have is omitted."""
    best = front.pareto_points(study)
    found = {
        "hypervolume": front.hypervolume(study),
        "best_val_macro_avg_acc": float(best["val_macro_avg_acc"].to_numpy(float).max()) if len(best) else None,
        "front_size": len(best),
        "trials": len(state.trials),
        "rejected": state.rejected.total(),
        "epochs": state.epochs,
        "hours": round(state.search_s / 3600, 4),
    }
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return `value`, a cell of a table, as a Python object; None instead of NaN."""
    plain = value.item() if hasattr(value, "item") else value
    return None if plain != plain else plain
