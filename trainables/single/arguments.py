"""Options that the commands in trainables/ share, and names in their help texts. Imports neither torch nor pandas."""

import argparse
from pathlib import Path

from trainables.config.flags import command_parser

CONTROLS = ("one_shot", "dense", "random")  # of progressive_prune.py: trainings to compare progressive pruning with
BASES = "a run's id, a checkpoint's folder, or the word last.ckpt for the newest finished run of run_training.py"


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the option --storage; its --help shows `description` and the configuration keys.

    A command adds its own options, calls `parse_known_args`, and passes the remaining arguments to `configure`.
    """
    p = command_parser(description)
    p.add_argument("--storage", type=Path, default=Path("runs"), help="folder of runs and caches (default: runs)")
    return p
