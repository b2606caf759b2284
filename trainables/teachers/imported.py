"""Teacher logits of other projects, whose rows follow the order of a csv file: read them, and key them by filename."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.tensor_file import read_tensors
from data import tau
from data.holdout import HoldOut
from trainables.teachers.ensemble import macro_accuracy
from trainables.teachers.logits import save_logits

CHANCE = 1 / len(tau.SCENES)


def import_logits(files: Sequence[Path], order: Path, parts: HoldOut, out: Path) -> dict[str, float]:
    """Save the mean of the logits in `files` to the logits file `out`, keyed by filename; return accuracies.

    Each file has the logits `[N, C]` of the N clips that the csv file `order` lists, in this order. `parts` are the
    training and validation clips of our split: each must be in `order`, and the logits of other clips are left out.
    Return the macro average accuracy of the mean on the training clips ("training") and on the validation clips
    ("validation", if there are any). Raise CheckpointError for logits or a csv file that do not fit.
    """
    names = listed(order)
    row = {name: i for i, name in enumerate(names)}
    table = [*parts.train.filename, *parts.validation.filename]
    missing = [name for name in table if name not in row]
    if missing:
        raise CheckpointError(
            f"{order} does not list {len(missing)} of the {len(table)} clips of the split, first {missing[0]}; "
            "expected all of them: give the csv file of the same split (data.subset) as the logits"
        )
    logits = torch.stack([matrix(path, names, order) for path in files]).mean(dim=0)[[row[name] for name in table]]
    n_train = len(parts.train)
    found = {"training": macro_accuracy(logits[:n_train], parts.train.label.to_numpy())}
    if len(parts.validation):
        found["validation"] = macro_accuracy(logits[n_train:], parts.validation.label.to_numpy())
    manifest = {
        "teacher": " + ".join(path.stem for path in files),
        "classes": list(tau.SCENES),
        "validation": "unknown: imported logits",
        "val_macro_avg_acc": found.get("validation"),
        "imported": [path.name for path in files],
        "order": order.name,
    }
    save_logits(out, table, logits, manifest)
    return found


def listed(order: Path) -> list[str]:
    """Return the filenames in the csv file `order` (separated by commas or tabs, with a column `filename`).

    A name without a folder gets TAU's folder `audio`. Raise CheckpointError if a clip is listed twice.
    """
    try:
        text = order.read_text(encoding="utf-8-sig")
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
        names = [row["filename"] for row in rows]
        if not names or not all(names):
            raise ValueError("it lists no clips, or a line has no filename")
    except KeyError as error:
        raise CheckpointError(f"{order} has no column {error}; expected the filename of each clip: add it") from error
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(
            f"{order} cannot be read as a csv file ({error}); expected a column filename, and one line for each row of "
            "the logits: give the csv file that came with them"
        ) from error
    names = [name if "/" in name else f"audio/{name}" for name in names]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CheckpointError(f"{order} lists {name} twice; expected each clip once: remove one of the lines")
        seen.add(name)
    return names


def matrix(path: Path, names: Sequence[str], order: Path) -> torch.Tensor:
    """Return the logits `[len(names), C]` in the file `path` (a tensor of `torch.save`, or an array of `numpy.save`).

    No code from the file is executed. Raise CheckpointError if it is no such file, has another shape, or if a logit is
    not finite. `order` is named in the message.
    """
    expected = f"expected {len(names)} rows (the clips that {order} lists) of {len(tau.SCENES)} logits"
    try:
        if path.suffix == ".npy":
            logits = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            logits = read_tensors(path, torch.Tensor)
    except Exception as error:  # zipfile, numpy and torch raise many error types for a damaged file
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read ({text}); {expected}, saved with torch.save or numpy.save: use such a file"
        ) from error
    if list(logits.shape) != [len(names), len(tau.SCENES)] or not logits.is_floating_point():
        raise CheckpointError(
            f"{path} has {logits.dtype} values of the shape {list(logits.shape)}; {expected}: give the csv file that "
            "belongs to these logits, or logits of the ten scenes"
        )
    broken = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise CheckpointError(
            f"{path} has logits that are not finite for {len(broken)} clips, first {names[broken[0]]}; expected finite "
            "numbers: use another file"
        )
    return logits.float()
