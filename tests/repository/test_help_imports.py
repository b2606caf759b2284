"""`--help` answers at once: it imports none of the libraries whose import takes long, in every command."""

import subprocess
import sys

import pytest

from ascmodels.compress import groups
from ascmodels.config import prune, student
from ascmodels.students.base import ACTIVATIONS
from tests.support.paths import ROOT
from tune import cli
from tune.search import choices, optuna_study

HEAVY = (
    *("matplotlib", "onnx", "onnxruntime", "optuna", "pandas", "plotly", "pyarrow", "ray", "scipy", "sklearn"),
    *("soundfile", "timm", "torch", "torch_pruning", "torchaudio", "torchvision", "transformers", "wandb"),
)
FILES = [
    *(f"{module.replace('.', '/')}.py" for module, _ in cli.COMMANDS.values()),
    *("trainables/compare_teachers.py", "analysis/paired.py"),
]
# starts each file as a program, with --help, and prints the heavy libraries that were imported by then
ASK = f"""
import runpy, sys
for file in sys.argv[1:]:
    sys.argv = [file, "--help"]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        print("status", end.code, file, *sorted({set(HEAVY)!r} & set(sys.modules)))
"""


def test_help_imports_no_heavy_library() -> None:
    command = [sys.executable, "-c", ASK, *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(FILES)
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [f"status 0 {f}" for f in FILES]


# what a driver does with each sampled configuration: compute the sizes of its network before and after pruning
MEASURE = """
import sys
from ascmodels.compress.plan import PruneConfig, plan_sizes
from ascmodels.students import StudentConfig
print(plan_sizes(StudentConfig(base_channels=8), PruneConfig((0.3,)), 64, 33))
print(*sorted({"timm", "torch._dynamo", "torch_pruning", "torchvision"} & set(sys.modules)))
import timm
"""


@pytest.mark.slow
def test_sizes_are_computed_without_timm_and_torch_dynamo() -> None:
    """They take seconds to import; the search needs neither. timm can be imported afterwards, for a teacher."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "torch_pruning"


def test_commands_that_import_when_they_work_are_listed() -> None:
    """A command that is left out of `FILES` would not be tested: every file that starts `main` is there."""
    starts = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/*.py") if "sys.exit(main())" in path.read_text()}
    generators = {"data/impulse.py", "data/synthetic.py"}  # generate sound: they are mostly libraries of other modules
    assert starts - generators == {*FILES, "tune/cli.py"}


def test_names_of_choices_are_those_of_the_code() -> None:
    """The options and the configuration list names; the code, which is imported later, has an entry for each."""
    assert tuple(optuna_study.SAMPLERS) == choices.SAMPLERS
    assert tuple(ACTIVATIONS) == student.ACTIVATIONS
    assert tuple(groups.CRITERIA) == prune.CRITERIA
    assert tuple(groups.DATA_CRITERIA) == prune.DATA_CRITERIA
