"""Finding single runs: a damaged info.json is named, and hides no other run (`trainables/single/run_folder.py`)."""

from pathlib import Path

import pytest

from trainables.single.run_folder import Run, RunError, newest_runs


@pytest.mark.parametrize("content", ["", '{"id": ', "[" * 100_000, "[]", "\x00", None])
def test_a_damaged_run_is_named_and_hides_no_other(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "experiments"
    for name, text in (("good", '{"id": "good", "kind": "train", "created": "2026"}'), ("bad", content)):
        (runs / name).mkdir(parents=True)
        file = runs / name / "info.json"
        file.mkdir() if text is None else file.write_text(text)
    assert [run.id for run in newest_runs(tmp_path)] == ["good"]
    assert str(runs / "bad") in caplog.text
    if content is not None:
        with pytest.raises(RunError) as error:
            Run.find(tmp_path, "bad")
        assert str(runs / "bad" / "info.json") in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="good"):  # lists those that can be read
        Run.find(tmp_path, "gone")
