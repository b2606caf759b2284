"""Pickles that others have put among the files of a study, a shared dense phase or a cache."""

import pickle
from collections.abc import Iterable
from pathlib import Path

# files that Ray writes and reads as pickles, and files of ours
NAMES = ("_dict_checkpoint.pkl", "error.pkl", "trainable.pkl", "tuner.pkl", "planted.pt", "planted.npy")


class Bomb:
    """An object that writes the file `mark` when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def bomb(mark: Path) -> bytes:
    """Return a pickle that writes the file `mark` when it is loaded."""
    return pickle.dumps(Bomb(mark), protocol=2)


def plant(tops: Iterable[Path], mark: Path) -> int:
    """Put pickles that write `mark` into all folders below `tops`; return the number of these folders."""
    folders = [folder for top in tops for folder in (top, *top.rglob("*")) if folder.is_dir()]
    for folder in folders:
        for name in NAMES:
            (folder / name).write_bytes(bomb(mark))
    return len(folders)
