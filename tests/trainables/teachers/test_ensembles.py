"""Ensembles of teachers, the choice of their members, files of logits."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError
from data.tau import SCENES
from trainables.config.distill import DistillConfig
from trainables.teachers.ensemble import accuracies, combine, greedy
from trainables.teachers.logits import load_logits, read_manifest, save_logits


def drawn(k: int = 3, n: int = 30, c: int = 4, seed: int = 0) -> tuple[list[torch.Tensor], np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=generator)
    logits = [torch.randn(n, c, generator=generator) + 0.7 * F.one_hot(labels, c) for _ in range(k)]
    return logits, labels.numpy()


def test_combinations_in_closed_form() -> None:
    logits, _ = drawn()
    assert torch.allclose(combine(logits, "logits"), sum(logits) / 3, atol=1e-6)  # type: ignore[arg-type]
    mean = torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0)
    assert torch.allclose(combine(logits, "probabilities").softmax(dim=1), mean, atol=1e-6)
    weighted = 0.75 * logits[0] + 0.25 * logits[2]
    assert torch.allclose(combine(logits, "logits", (3, 0, 1)), weighted, atol=1e-6)
    picked = combine(logits, "greedy", (0, 1, 0))
    assert torch.allclose(picked, logits[1].log_softmax(dim=1), atol=1e-6)
    far = [torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, -800.0]])]
    assert combine(far, "probabilities").isfinite().all()  # a probability of e^-500 does not become 0
    for weights, message in (((1, 1), "expected 3, one for each"), ((0, 0, 0), "not all of them 0")):
        with pytest.raises(ValueError, match=message):
            combine(logits, "logits", weights)


def by_hand(logits: list[torch.Tensor], labels: np.ndarray, chosen: tuple[int, ...]) -> tuple[float, float]:
    """Return macro accuracy and negative cross-entropy of the mean probabilities of the `chosen` teachers."""
    p = np.mean([np.exp(logits[k].double().log_softmax(dim=1).numpy()) for k in chosen], axis=0)
    right = {c: [int(p[i].argmax() == c) for i in np.flatnonzero(labels == c)] for c in set(labels.tolist())}
    accuracy = sum(sum(r) / len(r) for r in right.values()) / len(right)
    return round(accuracy, 12), round(float(np.mean([np.log(p[i, c]) for i, c in enumerate(labels)])), 12)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_selection_against_brute_force(seed: int) -> None:
    logits, labels = drawn(seed=seed)
    found = greedy(logits, labels, n_picks=6)
    chosen: tuple[int, ...] = ()
    for pick, accuracy in zip(found.picks, found.accuracies, strict=True):
        best = max(range(3), key=lambda k, so_far=chosen: by_hand(logits, labels, (*so_far, k)))
        assert pick == best
        chosen += (pick,)
        assert accuracy == by_hand(logits, labels, chosen)[0]
    prefixes = [by_hand(logits, labels, found.picks[: n + 1]) for n in range(6)]
    assert found.kept == max(range(6), key=lambda n: prefixes[n][0]) + 1
    assert found.weights == tuple(found.picks[: found.kept].count(k) / found.kept for k in range(3))
    measured = accuracies(logits, labels)
    assert measured.ensembles["greedy"] >= max(measured.members) - 1e-12  # on the clips that greedy selection used
    assert measured.members == pytest.approx([by_hand(logits, labels, (k,))[0] for k in range(3)])
    pairs = [by_hand(logits, labels, pair)[0] for pair in itertools.combinations_with_replacement(range(3), 2)]
    assert found.accuracies[1] <= max(pairs)


def test_a_teacher_that_is_wrong_gets_no_weight() -> None:
    logits, labels = drawn(k=1, n=200)
    assert greedy([-logits[0], logits[0]], labels).weights == (0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": "median"}, "expected one of logits, probabilities, greedy"),
        ({"teacher_ckpts": ("a", "b"), "teacher_weights": (1.0,)}, "expected 2, one for each teacher"),
        ({"teacher_weights": (-1.0, 2.0)}, "expected numbers >= 0"),
        ({"teacher_weights": (float("nan"),)}, "expected numbers >= 0"),
        ({"ensemble": "greedy", "teacher_weights": (1.0,)}, "chooses the weights itself"),
    ],
)
def test_distill_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)


# --- logits files ---


def test_logits_files_say_whose_they_are(tmp_path: Path) -> None:
    path, names = tmp_path / "l.safetensors", ["a", "b", "c"]
    logits = torch.randn(3, 10)
    save_logits(path, names, logits, {"classes": list(SCENES), "checkpoint": "x"})
    assert read_manifest(path)["checkpoint"] == "x"
    assert torch.equal(load_logits(path, ["c", "a"], SCENES), logits[[2, 0]].half().float())
    with pytest.raises(CheckpointError, match=r"no logits for 2 of 3 clips, first d"):
        load_logits(path, ["a", "d", "e"])
    with pytest.raises(CheckpointError, match="10 logits a clip"):
        load_logits(path, names, ("bus", "tram"))
    save_logits(path, names, logits[:, :4])  # 4 classes, and no manifest
    with pytest.raises(CheckpointError, match="4 logits a clip"):
        load_logits(path, names, SCENES)
    for value in (float("nan"), 1e5, -float("inf")):  # 1e5 exceeds float16
        broken = logits.clone()
        broken[1, 3] = value
        with pytest.raises(CheckpointError, match=r"1 of 3 clips have teacher logits that are not finite .* first b"):
            save_logits(path, names, broken)
    safetensors.torch.save_file({"logits": broken}, path, {"filenames": "a\nb\nc"})
    assert load_logits(path, ["a", "c"]).isfinite().all()
    with pytest.raises(CheckpointError, match="logits of 1 clips are not finite, first b"):
        load_logits(path, names)
    safetensors.torch.save_file({"logits": logits}, path, {"filenames": "a\nb"})
    with pytest.raises(CheckpointError, match=r"holds logits \[3, 10\] for 2 filenames"):
        load_logits(path, ["a"])
    safetensors.torch.save_file({"logits": logits}, path)
    for source in (path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=source.name):
            load_logits(source, ["a"])
