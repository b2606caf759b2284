"""Report on a study: print the Pareto front; write report.html and other files into the study folder.

    python analysis/report.py runs/my-study

The study may be running: the command only reads study.json, points.csv, trials.csv and test.csv.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: sys.path has analysis/, but not its parent folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from data.signals import end_at_once

    end_at_once()  # SIGINT and SIGTERM during the imports below

from rich.markup import escape

from analysis.typed_json import ResultsError
from data.signals import INTERRUPTED, interruptible
from data.untrusted import Terminal, linked_out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Print the Pareto front of a study; write report.html, report.md, front.csv, front.png and "
        "front.svg into its folder."
    )
    parser.add_argument("study_dir", type=Path, help="study folder, which contains study.json, e.g. runs/my-study")
    parser.add_argument(
        "--markers",
        type=Path,
        metavar="FILE",
        help="YAML file with other systems to show in the plots; analysis/published.yaml shows the format",
    )
    parser.add_argument(
        "--compare-with",
        type=Path,
        metavar="STUDY",
        help="another study of the same configurations, for example with longer training: does it rank them alike?",
    )
    options = parser.parse_args(arguments)
    study_dir = options.study_dir
    # here, because --help must not wait for pandas and matplotlib
    from analysis.outputs import print_front, write_report
    from analysis.results import load_study

    console, errors = (Terminal(stderr=e, highlight=False, soft_wrap=True) for e in (False, True))
    try:
        with interruptible():
            if problem := linked_out(study_dir):
                raise ResultsError(problem)
            paths = write_report(study_dir, options.markers, options.compare_with)
            print_front(load_study(study_dir))
    except KeyboardInterrupt:
        errors.print(
            "interrupted; the files of the report may still be those of an earlier one, or be missing: repeat the "
            "command"
        )
        return INTERRUPTED
    except (ResultsError, OSError) as error:
        errors.print(escape(f"error: the report was not completed: {error}"))
        return 2
    files = {"report": "html", "summary": "md", "plot": "png", "front": "csv"}
    console.print("")
    for name, key in files.items():
        console.print(escape(f"{name + ':':8} {paths[key]}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
