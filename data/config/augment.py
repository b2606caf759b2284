"""Configuration of the augmentation of training clips: `AugmentConfig`."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

LONGEST_ROLL_S = 60
LARGEST_ALPHA = 1_000_000  # parameter of a Beta distribution: from here on, all weights are 0.5


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each augmentation. The defaults are those of the DCASE 2024 baseline."""

    roll_s: float = 0.1  # largest circular time shift in seconds, in both directions (0: off)
    freq_mask: int = 48  # largest number of masked mel bins per clip (0: off)
    time_mask: int = 0  # largest number of masked frames per clip (0: off)
    mixstyle_p: float = 0.4  # probability that a batch gets Freq-MixStyle (0 to 1; 0: off)
    mixstyle_alpha: float = 0.3  # alpha of Freq-MixStyle's Beta(alpha, alpha) distribution (above 0)
    mixup_alpha: float = 0.0  # alpha of mixup's Beta(alpha, alpha) distribution (0: no mixup)
    dir_p: float = 0.0  # probability that a clip of device a is convolved with an impulse response (0: off)
    dir_dir: str | None = None  # folder of device impulse responses (WAV files), required if dir_p > 0; null: none

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "dir_dir" and not math.isfinite(value):
                raise ValueError(f"augment.{item.name}={value}: expected a finite number; correct the value")
        for name in ("mixstyle_p", "dir_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augment.{name}={getattr(self, name)}: expected a probability from 0 to 1; set 0 to turn this off"
                )
        for name in ("roll_s", "freq_mask", "time_mask", "mixup_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}={getattr(self, name)}: expected 0 or more; set 0 to turn this off")
        if self.roll_s > LONGEST_ROLL_S:
            raise ValueError(
                f"augment.roll_s={self.roll_s}: expected at most {LONGEST_ROLL_S} s (a clip has 1 s); lower the value"
            )
        for name in ("mixstyle_alpha", "mixup_alpha"):
            if getattr(self, name) > LARGEST_ALPHA:
                raise ValueError(
                    f"augment.{name}={getattr(self, name)}: expected at most {LARGEST_ALPHA:,}; lower the value"
                )
        if not self.mixstyle_alpha > 0:
            raise ValueError(
                f"augment.mixstyle_alpha={self.mixstyle_alpha}: expected a number above 0; to turn Freq-MixStyle off, "
                "set augment.mixstyle_p=0"
            )
        if self.dir_p and not self.dir_dir:
            raise ValueError(
                f"augment.dir_p={self.dir_p} needs impulse responses: name a folder of WAV files with augment.dir_dir "
                "(`python -m data.impulse FOLDER` writes a synthetic set), or set augment.dir_p to 0"
            )
        if self.dir_dir:  # absolute, because trials run in other working directories
            object.__setattr__(self, "dir_dir", str(Path(self.dir_dir).expanduser().resolve()))
