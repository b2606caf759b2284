"""Use the packages of this checkout, even if another one is installed.

A command that is started as a file runs this file, by its path, before it imports any of our packages:

    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

Without it, Python searches the command's own folder and then the installed packages, which may be of another checkout.
Child processes (Ray's workers on this machine) inherit the search path through PYTHONPATH. If a package still comes
from elsewhere, the command ends with exit status 2.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "ascmodels", "data", "search_spaces", "trainables", "tune")


def use_own_packages() -> None:
    """Put this checkout first on the module search path; exit with status 2 if another one is already imported."""
    script_folder = Path(sys.argv[0]).resolve().parent
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]).resolve() == script_folder:
        del sys.path[0]  # its files are modules of a package, not top-level modules
    root = str(ROOT)
    sys.path[:] = [root, *(p for p in sys.path if p != root)]
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in ("", root)]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *inherited])
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # imports nothing; for an imported package, its origin
        found = Path(spec.origin).parent.resolve() if spec and spec.origin else None
        if found != ROOT / name:
            print(
                f"error: package {name!r} comes from {found}, expected {ROOT / name}, the checkout of {sys.argv[0]}: "
                "start the command of the other checkout, or start this one in a new process",
                file=sys.stderr,
            )
            sys.exit(2)


if __name__ == "<run_path>":  # run by a command, not imported
    use_own_packages()
