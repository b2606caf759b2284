"""Configuration of the data set: `DataConfig`."""

from dataclasses import dataclass

SUBSETS = (5, 10, 25, 50, 100)
MAX_WORKERS = 1024
SOURCE_RATE = 44_100  # Hz


@dataclass(frozen=True)
class DataConfig:
    """Configuration of the data set: its folders, the training split, and the share of validation clips."""

    dataset_dir: str | None = None  # folder of the TAU development set; null: environment variable TAU24_PATH
    split_dir: str | None = None  # folder of split*.csv and test.csv; null: that of the data set, then ./split_setup
    cache_dir: str = "runs/cache"  # folder of cached waveforms and teachers (asc-tune run: <storage>/cache)
    subset: int = 100  # per cent of the training split that is used: 5, 10, 25, 50 or 100
    validation_share: float = 0.2  # share of the training clips held out by location for validation (0: all train)
    skip_broken: bool = False  # true: leave out and list broken WAV files (not missing ones); false: stop
    num_workers: int | None = None  # number of threads that decode WAV files (0 or more); null: one per core

    def __post_init__(self):
        if self.subset not in SUBSETS:
            raise ValueError(f"data.subset={self.subset}: expected one of {', '.join(map(str, SUBSETS))} (per cent)")
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"data.validation_share={self.validation_share}: expected a share of at least 0 and below 1; correct it"
            )
        if self.num_workers is not None and not 0 <= self.num_workers <= MAX_WORKERS:
            raise ValueError(
                f"data.num_workers={self.num_workers}: expected 0 to {MAX_WORKERS} threads, or null (one per core); "
                "correct the value"
            )
