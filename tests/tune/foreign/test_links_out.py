"""Commands that read a study refuse one with a symbolic link that leads out of it, as `--resume` does."""

import importlib
from pathlib import Path

import pytest

from tests.support.example_study import write_study


@pytest.mark.parametrize("command", ["analysis.report", "tune.status", "tune.live", "tune.evaluate"])
@pytest.mark.parametrize("link", ["points.csv", "experiments"])
def test_a_link_out_is_refused(command: str, link: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study, outside = write_study(tmp_path / "runs"), tmp_path / "outside"
    if link == "points.csv":
        (study / link).rename(outside)  # the file is valid, so that nothing but the link is wrong
    else:
        outside.mkdir()
    (study / link).symlink_to(outside)
    before = sorted(study.iterdir())
    assert importlib.import_module(command).main([str(study)]) == 2
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).split())
    assert f"{study / link} is a symbolic link to {outside}" in shown
    assert sorted(study.iterdir()) == before  # nothing was written
