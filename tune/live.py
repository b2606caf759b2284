"""Serve a live page of a study: its current report, its running trials and its
growing front.

    python tune/live.py runs/<study> [--port 8800] [--host 127.0.0.1]

/             the page; it updates itself (live.js) and keeps the scroll
              position and the zoom;
/status.json  the output of tune/status.py --json;
/points.csv   the current points of the study.

The server only reads the study's files, whether the study is running or not.
To see the page of a server on another machine, forward the port:
ssh -L 8800:127.0.0.1:8800 HOST
"""

import argparse
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))


def main(argv: list[str] | None = None) -> int:
    """Run the server until Ctrl-C or SIGTERM; return the exit status: 0, 2 if the study or the address cannot be used,
    or 130 if the signal came before the server ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of the study, or its URI in an object store")
    parser.add_argument("--port", type=int, default=8800, help="port; 0 selects a free one (default: %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; with 0.0.0.0, all other machines can read the page, which shows the study's "
        "settings, results and paths (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    from tune.commands import live  # here, because --help must not wait for pandas

    return live.command(options)


if __name__ == "__main__":
    sys.exit(main())
