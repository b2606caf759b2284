"""Make a command import the packages of its own checkout of asc-tune, even if another checkout is installed.

A command that is started as a file (`python tune/run.py`) executes this file before it imports a package of asc-tune:

    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

Without this file, Python would search the folder of the command and then the installed packages, which may belong to
another checkout. Child processes, such as Ray's workers on this machine, inherit the search path through PYTHONPATH. If
Python finds a package of asc-tune in another checkout nevertheless, the command ends with exit status 2. From here on,
SIGINT and SIGTERM end the command in order (data/signals.py), also while it imports its packages.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "ascmodels", "data", "search_spaces", "trainables", "tune")


def use_own_packages() -> None:
    """Put the root folder of this checkout first on the module search path and in PYTHONPATH.

    Print an error and exit with status 2 if a package of asc-tune is found in another folder, for example because it
    was imported from there before.
    """
    script_folder = Path(sys.argv[0]).resolve().parent
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]).resolve() == script_folder:
        del sys.path[0]  # its files are modules of a package, not top-level modules
    root = str(ROOT)
    sys.path[:] = [root, *(p for p in sys.path if p != root)]
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in ("", root)]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *inherited])
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # does not import; an imported package is found at its origin
        found = Path(spec.origin).parent.resolve() if spec and spec.origin else None
        if found == ROOT / name:
            continue
        if found is None:  # no file __init__.py
            problem = (
                f"Python finds no package {name!r}; expected {ROOT / name / '__init__.py'}, from the checkout of "
                f"{sys.argv[0]}: restore this folder of the checkout"
            )
        else:
            problem = (
                f"Python uses the package {name!r} in {found}; expected {ROOT / name}, from the checkout of "
                f"{sys.argv[0]}: remove the import of {name} that runs before this command (in sitecustomize.py, a "
                "file *.pth, or a script that calls the command), or use the same command of the other checkout"
            )
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "<run_path>":  # run by a command, not imported
    use_own_packages()
    from data.signals import end_at_once

    end_at_once()
