"""A fine-tuning of a teacher that is killed and started again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ascmodels.teachers import load_teacher
from data.tau import SCENES
from trainables.config.compose import compose
from trainables.teachers.fine_tuning import fine_tuned_teacher

VIT_WORDS = ("teacher.model.family=vit", "teacher.model.hidden_size=16", "teacher.model.heads=2")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, b"", b"PK nothing"], ids=["sound", "empty", "damaged"])
def test_a_fine_tuning_that_was_killed_continues(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    """It ends with the same weights, also with dropout and averaged weights. A damaged state is not used."""
    import trainables.teachers.fine_tuning as module

    random = ("teacher.model.dropout=0.1", "teacher.train.ema_decay=0.9", "teacher.train.epochs=4")
    config = compose([*words, *VIT_WORDS, *random])
    whole = fine_tuned_teacher(config)
    expected, _ = load_teacher(whole, SCENES)
    again = replace(config, data=replace(config.data, cache_dir=str(tmp_path / "cache")))
    trained, real = [], module.train_epoch

    def train(teacher, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(1)
        return real(teacher, *rest)

    monkeypatch.setattr(module, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(module, "train_epoch", train)
    with pytest.raises(KeyboardInterrupt):
        fine_tuned_teacher(again)
    (saved,) = (tmp_path / "cache").glob("teacher-*.state")
    if damage is not None:
        (saved / module.STATE).write_bytes(damage)
    monkeypatch.setattr(module, "train_epoch", lambda *given: trained.append(1) or real(*given))
    folder = fine_tuned_teacher(again)
    assert len(trained) == (4 if damage is None else 2 + 4)
    found, _ = load_teacher(folder, SCENES)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert not saved.exists()
