"""Means, intervals and paired tests of `analysis/paired.py`, compared with independent computations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.arms import PairedError, arm_means, paired_difference
from analysis.paired import main


@pytest.fixture
def raw() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": seed, "acc": 0.5 + 0.1 * (arm == "b") + rng.normal(0, 0.02)}
        for seed in range(6)
        for arm in ("a", "b")
    ]
    return pd.DataFrame(rows)


def test_intervals_are_scipys(raw) -> None:
    for row in arm_means(raw, "acc").to_dict("records"):
        values = raw[raw.arm == row["arm"]].acc
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (row["n"], row["low"], row["high"]) == (6, pytest.approx(low), pytest.approx(high))


def test_paired_test_is_scipys_and_pairs_by_seed(raw) -> None:
    a, b = (raw[raw.arm == arm].acc.to_numpy() for arm in "ab")
    shuffled = raw.sample(frac=1, random_state=1)
    found = paired_difference(shuffled, "acc", "b", "a")
    assert found["p"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert found["mean"] == pytest.approx(float(np.mean(b - a)))
    assert float(found["low"]) < 0.1 < float(found["high"])


def test_seeds_of_one_arm_alone_do_not_count(raw) -> None:
    part = raw[~((raw.arm == "b") & (raw.seed == 3))]
    assert paired_difference(part, "acc", "b", "a")["n"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[raw.arm == "a"], "arm 'b'"),
        (lambda raw: pd.concat([raw, raw.iloc[:1]]), "arm 'a' has seed 0 twice"),
        (lambda raw: raw[raw.seed == 0], r" 1 common seed"),
    ],
)
def test_what_cannot_be_compared_is_named(raw, change, message) -> None:
    with pytest.raises(PairedError, match=message):
        paired_difference(change(raw), "acc", "a", "b")


def test_command(raw, tmp_path, capsys) -> None:
    raw.to_csv(tmp_path / "raw.csv", index=False)
    assert main([str(tmp_path / "raw.csv"), "--metric=acc", "--pairs=b:a"]) == 0
    assert "b - a" in capsys.readouterr().out
    assert main([str(tmp_path / "raw.csv"), "--metric=loss"]) == 2
    assert "no column 'loss'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not a csv file"),
        (b"\n\n", "not a csv file"),
        (b"\xff\xfe\x00", "not a csv file"),
        (b"arm,seed,acc\na,0,0.5,9,9\n", "not a csv file"),
        (b'arm,seed,acc\n"a,0,0.5\n', "not a csv file"),
        (b"arm,seed,acc\n", "no rows"),
        (b"arm,seed,acc\na,0,[bold]high\n", "column acc has '[bold]high'"),
        (b"arm,seed,acc\na,0,inf\n", "column acc has 'inf'"),
        (b"arm,seed,acc\na,,0.5\n", "column seed has ''"),
        (b"arm,seed,acc\na,x,0.5\n", "column seed has 'x'"),
    ],
)
def test_a_file_that_is_no_table_of_results_is_named(tmp_path, capsys, content, found) -> None:
    (tmp_path / "raw.csv").write_bytes(content)
    assert main([str(tmp_path / "raw.csv"), "--metric=acc"]) == 2
    printed = capsys.readouterr().out
    assert str(tmp_path / "raw.csv") in printed
    assert found in printed


def test_an_empty_cell_is_a_missing_value(tmp_path, capsys) -> None:
    rows = "arm,seed,acc\na,0,0.5\na,1,0.6\na,2,0.7\nb,0,0.4\nb,1,\nb,2,0.5\n"
    (tmp_path / "raw.csv").write_text(rows)
    assert main([str(tmp_path / "raw.csv"), "--metric=acc", "--pairs=a:b"]) == 0
    assert "a - b" in capsys.readouterr().out
