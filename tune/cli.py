"""asc-tune: one command for all of ours. `asc-tune run --space kd_prune` is `python tune/run.py --space kd_prune`."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

# name -> module with a `main()`, and what it does
COMMANDS = {
    "run": ("tune.run", "search for networks: start, continue, extend or plan a study"),
    "status": ("tune.status", "show the progress of a study, or export it to Optuna"),
    "live": ("tune.live", "serve a page that follows a running study"),
    "evaluate": ("tune.evaluate", "open the test split for the networks of a finished study"),
    "report": ("analysis.report", "write the report of a study again"),
    "train": ("trainables.run_training", "train one student, without Ray"),
    "prune": ("trainables.progressive_prune", "prune a trained student step by step, without Ray"),
    "finetune-teacher": ("trainables.finetune_teacher", "fine-tune a pretrained Transformer as a teacher"),
    "cache-logits": ("trainables.cache_logits", "compute and cache the logits of teachers"),
    "deploy": ("trainables.deploy", "export a network to ONNX, fp16 and int8, and measure each"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; return its exit status, 2 for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"asc-tune: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"asc-tune {name}", *rest]  # argparse takes the name in its messages from here
    return importlib.import_module(COMMANDS[name][0]).main()


def typed_command(name: str) -> str:
    """Return how a command is typed, in the way that this process was started: `asc-tune run`, or
    `python tune/run.py` with the path of the interpreter, relative to the working directory if possible."""
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
