"""Print how well the accuracies of each dense epoch rank trials: Spearman's correlation with the final accuracy.

    python -m tests.bench.training.rungs analysis/studies/recipes/curves.csv

The csv file has the columns trial, epoch and val_macro_avg_acc. The final accuracy is the mean of the last 3 epochs.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("curves", type=Path, help="csv file with the learning curves")
    table = pd.read_csv(p.parse_args(argv).curves)
    curves = table.pivot(index="trial", columns="epoch", values="val_macro_avg_acc")
    end = curves.iloc[:, -3:].mean(axis=1)
    kinds = {"accuracy of this epoch": curves, "best accuracy so far": curves.cummax(axis=1)}
    print(pd.DataFrame({name: values.corrwith(end, method="spearman") for name, values in kinds.items()}).round(2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
