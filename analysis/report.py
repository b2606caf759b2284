"""Report on a study: print the Pareto front; write report.html and other files into the study folder.
Or compare several studies: print a verdict; write comparison.html and its tables into a folder.

    python analysis/report.py runs/my-study
    python analysis/report.py runs/my-study --out my-report
    python analysis/report.py runs/a runs/b --out a-and-b

The studies may be running: the command only reads study.json, points.csv, trials.csv and test.csv.
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


def folder(text: str) -> Path:
    """Return the path `text` of a study; ArgumentTypeError for a URI."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is a URI; expected a folder. tune/run.py and tune/evaluate.py write the report of a study in an "
            "object store into the store: copy the study to a folder to write it again"
        )
    return Path(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Print the Pareto front of a study; write report.html, report.md, front.csv, front.png and "
        "front.svg into its folder. With several studies, compare their fronts; write comparison.html and its tables "
        "into the folder of --out. Studies that differ only in their seed are runs of one method."
    )
    parser.add_argument(
        "study_dirs",
        metavar="STUDY",
        type=folder,
        nargs="+",
        help="study folder, which contains study.json, e.g. runs/my-study; the others are compared with the first one",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the written files, required for several studies (default: the folder of the study)",
    )
    parser.add_argument(
        "--markers",
        type=Path,
        metavar="FILE",
        help="YAML file with other systems to show in the plots; analysis/published.yaml shows the format",
    )
    parser.add_argument(
        "--compare-with",
        type=folder,
        metavar="STUDY",
        help="another study of the same configurations, for example with longer training: does it rank them alike?",
    )
    options = parser.parse_args(arguments)
    several = len(options.study_dirs) > 1
    if several and options.out is None:
        parser.error(f"--out is missing; expected a folder for the comparison of {len(options.study_dirs)} studies")
    for name in ("markers", "compare_with"):
        if several and getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} was given with {len(options.study_dirs)} studies; expected one study: leave it out")
    console, errors = (Terminal(stderr=e, highlight=False, soft_wrap=True) for e in (False, True))
    try:
        with interruptible():
            for study_dir in options.study_dirs:
                if problem := linked_out(study_dir):
                    raise ResultsError(problem)
            paths = _compare(options) if several else _report(options)
    except KeyboardInterrupt:
        errors.print(
            "interrupted; the files of the report may still be those of an earlier one, or be missing: repeat the "
            "command"
        )
        return INTERRUPTED
    except (ResultsError, OSError) as error:
        errors.print(escape(f"error: the report was not completed: {error}"))
        return 2
    console.print("")
    for name, path in paths.items():
        console.print(escape(f"{name + ':':8} {path}"))
    return 0


def _report(options: argparse.Namespace) -> dict[str, Path]:
    """Write the report of one study, and print its front. Return what is printed about the files: name -> path."""
    # here, because --help must not wait for pandas and matplotlib
    from analysis.outputs import print_front, write_report
    from analysis.results import load_study

    (study_dir,) = options.study_dirs
    paths = write_report(study_dir, options.markers, options.compare_with, options.out)
    print_front(load_study(study_dir))
    return {"report": paths["html"], "summary": paths["md"], "plot": paths["png"], "front": paths["csv"]}


def _compare(options: argparse.Namespace) -> dict[str, Path]:
    """Write the comparison of several studies, and print its verdict. Return name -> path, as `_report` does."""
    from analysis.compare.outputs import print_comparison, write_comparison

    compared, paths = write_comparison(options.study_dirs, options.out)
    print_comparison(compared)
    names = {"report": "comparison.html", "summary": "comparison.md", "plot": "fronts.png", "table": "comparison.csv"}
    return {name: paths[file] for name, file in names.items()}


if __name__ == "__main__":
    sys.exit(main())
