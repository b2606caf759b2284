"""trainables/import_logits.py: logits of others, keyed by the filenames of a csv, and what it refuses."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data import tau
from trainables import import_logits
from trainables.config.compose import compose
from trainables.inputs.clips import load_clips
from trainables.teachers.cached_logits import ensemble_logits
from trainables.teachers.logits import load_logits, read_manifest

pytestmark = pytest.mark.slow  # reads the tiny data set


@pytest.fixture
def split(tiny_tau: Path) -> pd.DataFrame:
    return tau.read_split(tiny_tau, "split100")


def true_logits(split: pd.DataFrame) -> torch.Tensor:
    noise = torch.randn(len(split), 10, generator=torch.Generator().manual_seed(0))
    return 5 * torch.eye(10)[torch.from_numpy(split.label.to_numpy())] + noise


def imported(tiny_tau: Path, folder: Path, logits: torch.Tensor, names: list[str], *more: str) -> int:
    torch.save(logits, folder / "a.pt")
    (folder / "order.csv").write_text("\n".join(["filename,x", *(f"{name},1" for name in names)]) + "\n")
    words = ["--order", str(folder / "order.csv"), "--out", str(folder / "t.safetensors"), f"--storage={folder}"]
    return import_logits.main([str(folder / "a.pt"), *more, *words, f"--dataset_dir={tiny_tau}"])


def test_the_order_of_the_csv_does_not_matter(split: pd.DataFrame, tiny_tau: Path, tmp_path: Path, capsys) -> None:
    """Rows in another order, with names without TAU's folder, and the mean with a second file of numpy."""
    logits, names = true_logits(split), list(split.filename)
    assert imported(tiny_tau, tmp_path, logits, names) == 0
    assert "training: macro_avg_acc 100.0%" in capsys.readouterr().out
    first = load_logits(tmp_path / "t.safetensors", names, tau.SCENES)
    shuffled = np.random.default_rng(0).permutation(len(names))
    plain = [names[i].removeprefix("audio/") for i in shuffled]
    np.save(tmp_path / "b.npy", logits[shuffled].numpy() + 2)
    assert imported(tiny_tau, tmp_path, logits[shuffled], plain, str(tmp_path / "b.npy")) == 0
    second = load_logits(tmp_path / "t.safetensors", names, tau.SCENES)
    assert torch.allclose(first + 1, second, atol=1e-2)
    config = compose(
        [
            *(f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{tmp_path}'"),
            f"distill.teacher_ckpts=['{tmp_path / 't.safetensors'}']",
        ]
    )
    clips = load_clips(config, 32_000)
    assert ensemble_logits(config, clips).shape == (len(clips.train.rows), 10)
    assert read_manifest(tmp_path / "t.safetensors")["imported"] == ["a.pt", "b.npy"]


def test_logits_without_sense_are_pointed_out(split: pd.DataFrame, tiny_tau: Path, tmp_path: Path, capsys) -> None:
    assert imported(tiny_tau, tmp_path, true_logits(split).roll(1, dims=1), list(split.filename)) == 0
    assert "chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda z, names: (z[:-1], names), ["49, 10", "50 rows"]),
        (lambda z, names: (z[:, :9], names), ["50, 9"]),
        (lambda z, names: (z, [*names[:-1], names[0]]), ["order.csv", "twice"]),
        (lambda z, names: (z[:-1], names[:-1]), ["order.csv", "1 of the 50 clips"]),
        (lambda z, names: (z, [*names[:-1], "audio/foreign.wav"]), ["order.csv", "1 of the 50 clips"]),
        (lambda z, names: (z.index_fill(0, torch.tensor([3]), torch.nan), names), ["not finite", "1 clips"]),
        (lambda z, names: ({"logits": z}, names), ["a.pt", "dict"]),
        (lambda z, names: (z.long(), names), ["int64"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    change, found: list[str], split: pd.DataFrame, tiny_tau: Path, tmp_path: Path, capsys
) -> None:
    logits, names = change(true_logits(split), list(split.filename))
    assert imported(tiny_tau, tmp_path, logits, names) == 2
    text = capsys.readouterr().out
    assert all(part in text for part in found) and not (tmp_path / "t.safetensors").exists()


def test_no_pickle_is_loaded_and_greedy_refuses_imported_logits(
    split: pd.DataFrame, tiny_tau: Path, tmp_path: Path, capsys
) -> None:
    assert imported(tiny_tau, tmp_path, true_logits(split), list(split.filename)) == 0
    (tmp_path / "a.pt").write_bytes(pickle.dumps(print))
    words = ["--order", str(tmp_path / "order.csv"), "--out", str(tmp_path / "u.safetensors")]
    assert import_logits.main([str(tmp_path / "a.pt"), *words, f"--dataset_dir={tiny_tau}"]) == 2
    assert "a.pt" in capsys.readouterr().out
    config = compose(
        [
            *(f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{tmp_path}'", "distill.ensemble=greedy"),
            f"distill.teacher_ckpts=['{tmp_path / 't.safetensors'}']",
        ]
    )
    with pytest.raises(Exception, match=r"t\.safetensors has imported logits"):
        ensemble_logits(config, load_clips(config, 32_000))
