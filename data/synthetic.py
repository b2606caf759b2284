"""Synthetic data set with the file layout of TAU Urban Acoustic Scenes 2022 Mobile and generated sound.

    python -m data.synthetic DEST [--train 2000 --test 600 --eval 0 --seed 0]

The set lets every command run on a machine without TAU. It contains no recordings, so accuracies on it do not
carry over to real scenes.

The sound of a scene is background noise plus two textures, such as rising or falling chirps, single or paired knocks,
slow or fast swells of noise. Scenes differ more in these textures than in the level of their frequency bands. A
location changes pitch and tempo of its scene and adds some sound of another scene. A recording device filters the
result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

if __name__ == "__main__":
    from data.signals import end_at_once

    end_at_once()  # SIGINT and SIGTERM during the imports below

import numpy as np
import soundfile as sf
from tqdm import tqdm

from data.files import locked, make_folder, mend_folder, read_json, replace_folder
from data.signals import INTERRUPTED, interruptible
from data.synthetic_sound import CHUNKS, DEVICES, RATE_HZ, SCENES, amplitude, generator, record, render

FORMAT_VERSION = 1  # version of the generated set; increase it with every change of the sound or the layout
MANIFEST = "synthetic.json"
EVALUATION_FOLDER = "TAU-urban-acoustic-scenes-2024-mobile-evaluation"

SEGMENTS_PER_LOCATION = 2
SPLITS_PERCENT = (5, 10, 25, 50, 100)
PARTS = ("train", "test", "eval")
CITIES = ("barcelona", "helsinki", "lisbon", "london", "lyon", "milan", "prague", "vienna")

# Training: devices that record a segment at the same time. The segments of a scene use the entries one after another.
# Half of the files are from device a.
TRAIN_TURNS = (("a", "b"), ("s1",), ("a",), ("a", "c"), ("s2",), ("a", "s3"), ("a",))
# Test and evaluation: each 1 s chunk is recorded by one device, and the devices take turns. So a small test part has
# every scene with every device.
TEST_TURNS = ("a", "s4", "s1", "b", "s5", "s2", "c", "s6", "s3")

# --- Plan of the recordings: the segments of each location, and the files of each segment ---


@dataclass(frozen=True)
class Take:
    """One WAV file of the set: a 1 s chunk of a segment, as recorded by one device."""

    filename: str
    chunk: int  # index of the chunk in the segment, 0 to 9
    device: str


@dataclass(frozen=True)
class Segment:
    """A recording of 10 s at one location, and the files (`takes`) cut from it.

    `location` is the number of the location, and `number` that of the segment. They do not depend on the size of the
    set, so a larger set with the same seed contains all training and test files of a smaller one.
    """

    scene: str
    city: str
    location: int
    number: int
    takes: tuple[Take, ...]


def plan(part: str, n_clips: int) -> list[Segment]:
    """Return the segments with the `n_clips` files of one part ("train", "test" or "eval").

    The scenes have equal numbers of files (a difference of one if `n_clips` is not a multiple of ten). No location is
    in two parts.
    """
    segments = []
    for scene_index, scene in enumerate(SCENES):
        missing = n_clips // len(SCENES) + (scene_index < n_clips % len(SCENES))
        for index in count():
            if missing == 0:
                break
            visit, nth = divmod(index, SEGMENTS_PER_LOCATION)
            round_ = visit * len(PARTS) + PARTS.index(part)
            location = round_ * len(SCENES) + scene_index
            number = location * SEGMENTS_PER_LOCATION + nth
            city = CITIES[(round_ + scene_index) % len(CITIES)]
            takes = tuple(
                Take(f"audio/{scene}-{city}-{location}-{number}-{chunk}-{device}.wav", chunk, device)
                for chunk, device in islice(_recordings(part, scene_index + index), missing)
            )
            segments.append(Segment(scene, city, location, number, takes))
            missing -= len(takes)
    return segments


def _recordings(part: str, turn: int) -> Iterator[tuple[int, str]]:
    """Return an iterator over the files of a segment: tuples (index of the 1 s chunk, name of the recording device).

    `turn` is the number of the segment within its scene. If `part` is "train", every device in entry `turn` (modulo the
    length) of TRAIN_TURNS records all chunks. If it is "test" or "eval", one device records each chunk: the devices of
    TEST_TURNS take turns, and the next segment goes on with the device after the last one.
    """
    if part == "train":
        return ((chunk, d) for d in TRAIN_TURNS[turn % len(TRAIN_TURNS)] for chunk in range(CHUNKS))
    return ((chunk, TEST_TURNS[(turn * CHUNKS + chunk) % len(TEST_TURNS)]) for chunk in range(CHUNKS))


def nested_splits(segments: list[Segment], seed: int) -> dict[int, list[Segment]]:
    """Divide `segments` into the training splits: a dict from per cent (5, 10, 25, 50, 100) to the segments of a split.

    Each split is a subset of the next larger one. A split has at least two complete segments of each scene (at two
    locations, if the scene has them), so that validation clips can be held out. The 5 % split of a small set therefore
    has more than 5 % of the clips. The same `seed` gives the same splits.
    """
    splits: dict[int, list[Segment]] = {percent: [] for percent in SPLITS_PERCENT}
    for scene_index, scene in enumerate(SCENES):
        own = [s for s in segments if s.scene == scene]
        order = [own[i] for i in generator("splits", seed, scene_index).permutation(len(own))]
        elsewhere = next((i for i, s in enumerate(order) if s.location != order[0].location), None)
        if elsewhere:
            order.insert(1, order.pop(elsewhere))
        clips = np.cumsum([len(s.takes) for s in order])
        for percent in SPLITS_PERCENT:
            nearest = int(np.argmin(np.abs(clips - clips[-1] * percent / 100)))
            splits[percent] += order[: max(nearest + 1, 2)]
    return splits


def write_segment(segment: Segment, folder: Path, seed: int) -> int:
    """Write the WAV files of `segment` into `folder`; return their number. `seed` is that of the data set."""
    spectrum = render(segment.scene, segment.location, segment.number, seed)
    waves = {name: record(spectrum, name) for name in {take.device for take in segment.takes}}
    for take in segment.takes:
        rng = generator("floor", seed, segment.number, take.chunk, *take.device.encode())
        clip = waves[take.device][take.chunk * RATE_HZ :][:RATE_HZ]
        clip = clip + amplitude(DEVICES[take.device].floor_dbfs) * rng.standard_normal(RATE_HZ)
        sf.write(folder / take.filename, np.clip(clip, -0.99, 0.99), RATE_HZ, subtype="PCM_24")
    return len(segment.takes)


# --- Writing: a data set is built in a temporary folder, which is then renamed ---


def build(
    dest: Path, n_train: int = 2000, n_test: int = 600, seed: int = 0, n_eval: int = 0, progress: bool = True,
    workers: int | None = None,
) -> Path:  # fmt: skip
    """Build the development set in the folder `dest` unless it exists; return the absolute path of `dest`.

    `n_train`, `n_test` and `n_eval` are numbers of clips. If `n_eval` > 0, the evaluation set is built in a folder next
    to `dest`. `progress` shows a progress bar. `workers` is the number of processes (None: one per core) and does not
    affect the files. Raise ValueError for too few clips, FileExistsError if `dest` has other content.
    """
    if min(n_train, n_test, n_eval or len(SCENES)) < len(SCENES) or seed < 0:
        requested = f"train {n_train}, test {n_test}, eval {n_eval}, seed {seed}"
        raise ValueError(
            f"{requested}: expected at least {len(SCENES)} clips each for train, test and eval (eval may be 0), and a "
            "seed of 0 or more; raise the numbers"
        )
    dest = Path(dest).absolute()
    write = partial(_write_audio, seed=seed, progress=progress, workers=workers or os.cpu_count() or 1)

    def development(folder: Path) -> None:
        train, test = plan("train", n_train), plan("test", n_test)
        write(train + test, folder)
        _write_tables(train, test, seed, folder)

    def evaluation(folder: Path) -> None:
        segments = _anonymous(plan("eval", n_eval), seed)
        write(segments, folder)
        names = sorted(t.filename for s in segments for t in s.takes)
        _write_table(folder / "evaluation_setup/fold1_test.csv", ["filename"], ([name] for name in names))

    _build_once(dest, {"train": n_train, "test": n_test, "seed": seed}, development)
    if n_eval:
        _build_once(dest.parent / EVALUATION_FOLDER, {"eval": n_eval, "seed": seed}, evaluation)
    return dest


def _anonymous(segments: list[Segment], seed: int) -> list[Segment]:
    total = sum(len(s.takes) for s in segments)
    names = iter(generator("names", seed).permutation(total))
    return [replace(s, takes=tuple(replace(t, filename=f"audio/{next(names)}.wav") for t in s.takes)) for s in segments]


def _write_tables(train: list[Segment], test: list[Segment], seed: int, folder: Path) -> None:
    meta = ([t.filename, s.scene, f"{s.city}-{s.location}", t.device] for s in train + test for t in s.takes)
    _write_table(folder / "meta.csv", ["filename", "scene_label", "identifier", "source_label"], meta)
    tables = {f"split{percent}": part for percent, part in nested_splits(train, seed).items()} | {"test": test}
    for name, segments in tables.items():
        rows = ([t.filename, s.scene] for s in segments for t in s.takes)
        _write_table(folder / f"split_setup/{name}.csv", ["filename", "scene_label"], rows)


def _write_table(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))


def _write_audio(segments: list[Segment], folder: Path, seed: int, progress: bool, workers: int) -> None:
    (folder / "audio").mkdir()
    job = partial(write_segment, folder=folder, seed=seed)
    total = sum(len(s.takes) for s in segments)
    with tqdm(total=total, desc="rendering", unit="clip", mininterval=1, disable=not progress) as bar:
        if workers == 1:
            for segment in segments:
                bar.update(job(segment))
            return
        # spawn, not fork: locks of the caller's threads (torch) could stay locked in a forked process
        with multiprocessing.get_context("spawn").Pool(workers, initializer=_end_with_parent) as pool:
            for clips in pool.imap_unordered(job, segments):
                bar.update(clips)


def _end_with_parent() -> None:
    """Start a thread that ends this worker process when its parent process ends, also if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the parent is enough
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_once(dest: Path, parameters: dict[str, int], write: Callable[[Path], None]) -> None:
    """Create the folder `dest`, unless it already has a data set with the same `parameters` (numbers of clips, seed).

    `write(folder)` writes the data set into the empty folder `folder`. If `dest` has any other content, FileExistsError
    is raised.
    """
    requested = {"format": FORMAT_VERSION, **parameters}

    def write_all(temporary: Path) -> None:
        write(temporary)
        (temporary / MANIFEST).write_text(json.dumps(requested) + "\n")

    make_folder(dest.parent)
    with locked(dest.parent):  # locks the directory itself: no lock file remains in the user's folder
        mend_folder(dest)
        if dest.exists() and any(dest.iterdir()):
            manifest = dest / MANIFEST
            try:
                found = read_json(manifest) if manifest.exists() else "files of another kind"
            except ValueError as error:
                found = f"a damaged manifest ({error})"
            if found != requested:
                raise FileExistsError(
                    f"{dest} holds {found}; expected a synthetic data set with {requested}, or an empty folder: "
                    f"choose a destination in another folder, or delete {dest} if nobody needs it"
                )
            return
        replace_folder(dest, write_all)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to which the development set is written")
    parser.add_argument("--train", type=int, default=2000, help="number of training clips (default: 2000)")
    parser.add_argument("--test", type=int, default=600, help="number of test clips (default: 600)")
    parser.add_argument("--eval", type=int, default=0, help="number of unlabelled clips, next to DEST (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the data set (default: 0)")
    args = parser.parse_args(argv)
    try:
        with interruptible():
            dest = build(args.dest, args.train, args.test, args.seed, args.eval)
    except KeyboardInterrupt:
        print("interrupted; to continue, repeat the command")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"the synthetic data set is in the folder {dest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
