"""Runs, trials and studies of others: a symbolic link that leads out of one is not followed by any command."""

import sys
from pathlib import Path

import pytest

from ascmodels.checkpoint import save_student
from tests.support.trainables.deployed import student
from trainables import deploy, progressive_prune, run_training
from trainables.outputs.records import write_info
from trainables.single.run_folder import checked_checkpoint, find_checkpoint


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with one trial, and a run r1 beside it; both have a network."""
    folder = tmp_path / "x"
    for place, kind in ((folder / "experiments" / "t0000", None), (tmp_path / "experiments" / "r1", "train")):
        write_info(place, {"id": place.name, "status": "complete", "config": {}} | ({"kind": kind} if kind else {}))
        save_student(place / ("last.ckpt" if kind else "step0"), student(), {})
    (folder / "study.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    return folder


def move_out(place: Path) -> None:
    """Move the file or folder `place` out of its study or run, and put a symbolic link there."""
    target = next(p for p in place.parents if (p / "outside").is_dir()) / "outside" / place.name
    place.rename(target)
    place.symlink_to(target)


@pytest.mark.parametrize(
    "link", ["experiments", "experiments/t0000", "experiments/t0000/step0", "experiments/t0000/step0/student.json"]
)
def test_a_network_of_a_study_with_a_link_out_is_not_deployed(
    link: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = study / "experiments" / "t0000" / "step0"
    assert checked_checkpoint(checkpoint) == checkpoint == find_checkpoint(tmp_path, str(checkpoint))
    move_out(study / link)
    before = sorted(tmp_path.rglob("*"))
    assert deploy.main([f"--storage={tmp_path}", f"--checkpoint={checkpoint}"]) == 2
    assert f"{study / link} is a symbolic link to {tmp_path / 'outside'}" in " ".join(capsys.readouterr().out.split())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("link", ["info.json", "last.ckpt", "last.ckpt/weights.safetensors", "deploy"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (deploy, ["--ckpt_id=r1"]),
        (run_training, ["--ckpt_id=r1", "--evaluate"]),
        (progressive_prune, ["--base_ckpt=r1"]),
        (progressive_prune, ["--resume=r1"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value.__name__.rpartition(".")[2],
)
def test_a_run_with_a_link_out_is_not_used(
    command, words: list[str], link: str, study: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "experiments" / "r1" / link
    if link == "deploy":
        place.mkdir()
    move_out(place)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["command"])
    assert command.main([f"--storage={tmp_path}", *words]) == 2
    assert f"{place} is a symbolic link to {tmp_path / 'outside'}" in " ".join(capsys.readouterr().out.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_links_to_a_checkpoint_and_within_a_study_are_followed(study: Path, tmp_path: Path) -> None:
    checkpoint = study / "experiments" / "t0000" / "step0"
    (tmp_path / "best").symlink_to(checkpoint)
    (study / "experiments" / "t0000" / "best").symlink_to("step0")
    assert checked_checkpoint(tmp_path / "best") == checkpoint
    assert checked_checkpoint(study / "experiments" / "t0000" / "best") == checkpoint
