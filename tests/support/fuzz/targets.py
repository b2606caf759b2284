"""The inputs of tests/bench/fuzz.py: valid files of each kind, how they are damaged, and the code that reads them."""

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from analysis import arms
from analysis.page import html
from analysis.results import load_study
from analysis.typed_json import ResultsError
from ascmodels.checkpoint import CheckpointError, load_student, load_tensors, save_student
from ascmodels.compress.plan import plan_sizes
from ascmodels.config.prune import PruningError
from ascmodels.nessi import UncountableError
from ascmodels.students import StudentConfig, build_student
from ascmodels.teachers import TeacherModelConfig, build_teacher, load_teacher, save_teacher
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.impulse import load_impulses
from data.seals import SealError, check_seal, seal
from data.tau import SCENES, DatasetError, read_clip, read_split
from search_spaces import FOLDER, SpaceError, load_space
from tests.support import example_study
from tests.support.fuzz.damage import NUMBERS, TEXTS, damaged_bytes, damaged_csv, damaged_json, damaged_yaml
from tests.support.simulated import RandomStudy
from tests.support.tau import coloured_noise, make_tau
from tests.support.tune.journals import opened
from trainables.config.compose import compose
from trainables.config.flags import flags, flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig, key_types
from trainables.single.plan_file import SHIPPED, read_plan
from trainables.single.run_folder import Run, RunError
from trainables.teachers.logits import load_logits, save_logits
from tune.study.journal import FOLDER as JOURNAL
from tune.study.journal import JournalError, read_state
from tune.study.manifest import StudyError, read_manifest
from tune.study.reader import Follower, open_place


@dataclass(frozen=True)
class Target:
    """A kind of input: `read(rng, corpus, folder)` damages a copy of the corpus in `folder`, and reads it."""

    name: str
    errors: tuple[type[Exception], ...]  # the project's own errors, which are the right answer to a damaged input
    read: Callable[[random.Random, Path, Path], None]


def build_corpus(corpus: Path) -> None:
    """Write a valid example of each kind of file into the folder `corpus`."""
    make_tau(corpus / "tau")
    student = build_student(StudentConfig(base_channels=8, n_blocks=(1,), strides=()))
    config = TrialConfig().flat()
    save_student(corpus / "student", student, {"classes": list(SCENES), "config": config})
    front_end, classes = FrontEndConfig(16_000, 512, 512, 400, 16), {"classes": list(SCENES)}
    for family in ("ast", "vit"):
        model = TeacherModelConfig(family=family, hidden_size=16, layers=1, heads=2)
        save_teacher(corpus / family, build_teacher(model, 10, front_end.n_mels, front_end.frames), classes)
    save_logits(corpus / "logits.safetensors", ["a", "b"], torch.zeros(2, 10), classes)
    torch.save({"weights": torch.zeros(100), "epoch": 3}, corpus / "state.pt")
    (corpus / "sealed").mkdir()
    (corpus / "sealed" / "a.txt").write_text("content")
    seal(corpus / "sealed", epochs=3)
    run = Run.new(corpus / "runs", "train", TrialConfig(), ["python"], "r1")
    run.update(status="complete")
    example_study.write_timed_study(corpus / "study")
    journal = opened(corpus / "study")
    driven = RandomStudy(corpus / "driven", seed=1)
    journal.append(tuple(driven.run(120)))
    journal.close()
    wave = coloured_noise(0, 0, 0, np.random.default_rng(0))
    for name, form, subtype in (
        ("a", "WAV", "PCM_24"),
        ("b", "WAV", "FLOAT"),
        ("c", "FLAC", "PCM_16"),
        ("d", "W64", "PCM_16"),
    ):
        stream = io.BytesIO()
        soundfile.write(stream, wave, 44_100, format=form, subtype=subtype)
        (corpus / f"{name}.sound").write_bytes(stream.getvalue())
    (corpus / "raw.csv").write_text("arm,seed,acc\n" + "".join(f"{arm},{s},0.{s}5\n" for arm in "ab" for s in range(4)))


def _copy(corpus: Path, folder: Path, name: str) -> Path:
    place = folder / name
    (shutil.copytree if (corpus / name).is_dir() else shutil.copy)(corpus / name, place)
    return place


def _damage_one(place: Path, rng: random.Random) -> None:
    """Damage a random file in the folder `place`; a file of JSON mostly in its values."""
    path = rng.choice(sorted(p for p in place.rglob("*") if p.is_file()))
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_bytes(damaged_json(json.loads(path.read_bytes()), rng))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))


def read_flags(rng: random.Random, corpus: Path, folder: Path) -> None:
    keys, names = sorted(key_types()), sorted(flags())
    words = []
    for _ in range(rng.randint(1, 3)):
        value = rng.choice((*NUMBERS, *TEXTS, "[1,2]", "[a,b]", "cp_mobile", "full"))
        word = rng.choice(
            (
                f"--{rng.choice(names)}={value}",
                f"{rng.choice(keys)}={value}",
                f"{rng.choice(keys)}=[{value},{value}]",
                f"{rng.choice(('+', '++', '~', ''))}{rng.choice(('zoo', 'profile', 'student', *keys))}={value}",
                value,
            )
        )
        words.append(word)
    _build(compose(flags_to_overrides(words)))


def _build(config: TrialConfig) -> None:
    """Build what a dry run builds of a configuration, without training."""
    LogMel(config.frontend)
    LogMel(config.teacher.frontend)
    plan_sizes(config.student, config.prune, config.frontend.n_mels, config.frontend.frames, config.limits.precision)


def _yaml(folder: Path, source: Path, rng: random.Random) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(damaged_yaml(source.read_text(), rng))
    return path


def read_space(rng: random.Random, corpus: Path, folder: Path) -> None:
    space = load_space(str(_yaml(folder, rng.choice(sorted(FOLDER.glob("*.yaml"))), rng)))
    base = compose(space.base).flat()
    for corner in space.corners()[:4]:
        _build(TrialConfig.from_flat(base | corner))


def read_plan_file(rng: random.Random, corpus: Path, folder: Path) -> None:
    TrialConfig.from_flat(read_plan(str(_yaml(folder, rng.choice(sorted(SHIPPED.glob("*.yaml"))), rng))))


def read_tables(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Read a damaged csv file of the data set, of paired.py, or of a study with its report."""
    kind = rng.choice(("tau", "raw", "study"))
    if kind == "raw":
        path = _copy(corpus, folder, "raw.csv")
        path.write_bytes(damaged_csv(path.read_bytes(), rng))
        arms.paired_difference(arms.read_raw(path, "acc"), "acc", "a", "b")
    elif kind == "tau":
        root = folder / "tau"
        (root / "split_setup").mkdir(parents=True)
        for name in ("meta.csv", "split_setup/split5.csv"):
            content = (corpus / "tau" / name).read_bytes()
            (root / name).write_bytes(damaged_csv(content, rng) if rng.random() < 0.6 else content)
        read_split(root, "split5")
    else:
        study = _copy(corpus, folder, "study")
        path = study / rng.choice(("points.csv", "trials.csv"))
        path.write_bytes(damaged_csv(path.read_bytes(), rng))
        html.page(load_study(study))


def read_sound(rng: random.Random, corpus: Path, folder: Path) -> None:
    data = (corpus / f"{rng.choice('abcd')}.sound").read_bytes()
    path = folder / "a.wav"
    path.write_bytes(damaged_bytes(data, rng))
    if rng.random() < 0.5:
        read_clip(path)
    else:
        load_impulses(folder, rng.choice((8000, 16_000, 32_000)))


def read_journal(rng: random.Random, corpus: Path, folder: Path) -> None:
    study = _copy(corpus, folder, "study")
    path = rng.choice(sorted((study / JOURNAL).iterdir()))
    lines = path.read_bytes().splitlines()
    i = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[i] = damaged_json(json.loads(lines[i]), rng)
        content = b"\n".join(lines) + b"\n"
    else:
        content = rng.choice((damaged_bytes(path.read_bytes(), rng), b"\n".join(lines[:i] + lines[i + 1 :]) + b"\n"))
    path.write_bytes(content)
    if rng.random() < 0.5:
        read_state(study)
    else:
        Follower(open_place(str(study)).folder).update()


def read_study_json(rng: random.Random, corpus: Path, folder: Path) -> None:
    study = _copy(corpus, folder, "study")
    path = study / "study.json"
    path.write_bytes(damaged_json(json.loads(path.read_bytes()), rng))
    if rng.random() < 0.3:
        read_manifest(study)
    else:
        html.page(load_study(study))


def read_checkpoint(rng: random.Random, corpus: Path, folder: Path) -> None:
    kind = rng.choice(("student", "student", "ast", "vit", "logits.safetensors", "state.pt", "sealed", "runs"))
    place = _copy(corpus, folder, kind)
    if place.is_file():
        place.write_bytes(damaged_bytes(place.read_bytes(), rng))
    else:
        _damage_one(place, rng)
    if kind == "student":
        load_student(place)
    elif kind in ("ast", "vit"):
        load_teacher(place, SCENES)
    elif kind == "sealed":
        check_seal(place)
    elif kind == "runs":
        assert Run.find(place, "r1").config
    else:
        (load_tensors if kind == "state.pt" else lambda path: load_logits(path, ["a", "b"], SCENES))(place)


_CONFIG = (ConfigError, PruningError, UncountableError)
TARGETS = (
    Target("flags", _CONFIG, read_flags),
    Target("space", (SpaceError, *_CONFIG), read_space),
    Target("plan file", _CONFIG, read_plan_file),
    Target("csv", (DatasetError, ResultsError, arms.PairedError), read_tables),
    Target("sound", (DatasetError,), read_sound),
    Target("journal", (JournalError, ResultsError), read_journal),
    Target("manifest", (ResultsError, StudyError), read_study_json),
    Target("checkpoint", (CheckpointError, SealError, RunError, ConfigError), read_checkpoint),
)
