"""The command `asc-tune`, whose sub-commands are the programs of this project.

`asc-tune run --space kd_prune` does the same as `python tune/run.py --space kd_prune`, in any folder.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from data.signals import end_at_once

# name of a sub-command -> module with its `main()`, and the text that --help shows
COMMANDS = {
    "run": ("tune.run", "search for networks: start, continue, extend or plan a study"),
    "status": ("tune.status", "show the progress of a study, or export it to Optuna"),
    "live": ("tune.live", "serve a page that follows a running study"),
    "refit": ("tune.refit", "train the networks of a study's front again, on all clips"),
    "evaluate": ("tune.evaluate", "measure the front of a complete study on the test split"),
    "report": ("analysis.report", "write the report of a study again, or compare studies"),
    "train": ("trainables.run_training", "train one student, without Ray"),
    "prune": ("trainables.progressive_prune", "prune a trained student step by step, without Ray"),
    "finetune-teacher": ("trainables.finetune_teacher", "train a teacher (AST, ViT or CNN), pretrained or not"),
    "import-logits": ("trainables.import_logits", "import the logits of other projects as a teacher"),
    "cache-logits": ("trainables.cache_logits", "compute and cache the logits of teachers"),
    "deploy": ("trainables.deploy", "export a network to ONNX, fp16 and int8, and measure each"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that `argv` names (None: sys.argv). Return its exit status; 2 for an unknown sub-command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        message = f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}: see asc-tune --help"
        print(f"asc-tune: {message}", file=sys.stderr)
        return 2
    sys.argv = [f"asc-tune {name}", *rest]  # argparse shows this name in its messages
    end_at_once()  # until the command begins its work
    return importlib.import_module(COMMANDS[name][0]).main()


def typed_command(name: str) -> str:
    """Return the first words of a command line that starts the program tune/`name`.py; messages show it to the user.

    For `name` "run", this is `asc-tune run` if the present process was started with `asc-tune`. Otherwise it is a line
    such as `.venv/bin/python tune/run.py`, with the path of the present Python interpreter.
    """
    if sys.argv[0].startswith("asc-tune "):
        return f"asc-tune {name}"
    python, here = Path(sys.executable), Path.cwd()
    return f"{python.relative_to(here) if python.is_relative_to(here) else python} tune/{name}.py"


def usage() -> str:
    """Return the text of `asc-tune --help`."""
    lines = [f"  {name:<18}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: asc-tune COMMAND ...",
            "",
            "Search for small, accurate acoustic scene classifiers with Ray Tune.",
            "",
            "commands:",
            *lines,
            "",
            "`asc-tune COMMAND --help` lists the options of a command. Each command is also a",
            "file of a checkout: asc-tune run is python tune/run.py.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
