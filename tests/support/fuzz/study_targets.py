"""More inputs of tests/bench/fuzz.py: what a study, its storage and its caches hold, and others could have changed."""

import functools
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch

from analysis.typed_json import ResultsError
from ascmodels.checkpoint import CheckpointError, load_tensors
from data.cache import open_cache
from data.seals import SealError, check_seal, seal
from data.tau import SCENES, DatasetError, read_split
from search_spaces import FOLDER, SpaceError, load_space
from tests.support.fuzz.damage import damaged_bytes, damaged_json
from tests.support.fuzz.file_damage import damage, damaged_state, damaged_tensors, reseal, restructured, sealed_json
from tests.support.fuzz.targets import Target
from tests.support.trainables.small_trials import small_trial
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged
from trainables.outputs.storage import LEASE, Store, TrialCheckpoints
from trainables.single.plan_file import SHIPPED, read_plan
from trainables.teachers.logits import load_logits, save_logits
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.dense_phase import run_shared
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial
from tune.study.journal import JournalError
from tune.study.lease import StoreLease, StudyLost, find_claim
from tune.study.manifest import StudyError
from tune.study.reader import Follower, open_place
from tune.study.store import Mirror

CODE = "fuzz"  # hash of the code, a part of the key of a shared dense phase
RUN, TRIAL = "run000-0a1b", "t0000"
YAML = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b]\n",
    "<<: &m {parameters: {train.lr: {uniform: [0.1, 0.2]}}}\n",
    "parameters: &p {train.lr: {uniform: [0.1, 0.2]}}\nauxiliary: *p\n",
    "parameters: &self {train.lr: *self}\n",
    "parameters: {? [a, b] : {uniform: [0, 1]}, ? {a: b} : 1}\n",
    "base: [a=b]\nbase: [c=d]\n",
    "ratios: &r [0.1]\nround_to: *r\n",
    "? &k ratios\n: [0.1]\n*k : [0.2]\n",
    "--- {}\n--- {}\n",
    "%TAG ! tag:yaml.org,2002:\n---\nparameters: !python/object:os.system x\n",
    "ratios: " + "[" * 900 + "]" * 900 + "\n",
    "description: " + "&x " + "y" * 50_000 + "\n",
    "parameters: {train.lr: {uniform: [.nan, .inf]}, train.epochs: {int: [0x7fffffffffffffff, 1e400]}}\n",
    "parameters: {../../x: {choice: ['../../y', '\\0']}}\n",
)


def build_study_corpus(corpus: Path) -> None:
    """Write valid examples into the folder `corpus`, which `targets.build_corpus` has filled."""
    files = sorted(read_split(corpus / "tau", "split5").filename)
    open_cache(corpus / "tau", files, 8000, corpus / "waveforms", progress=False)
    trial = _trial(corpus, corpus / "networks")
    run = corpus / "store" / "ray" / RUN / TRIAL
    for number, _ in zip(range(3), run_shared(trial, corpus / "parents", CODE), strict=False):
        checkpoint = run / f"checkpoint_{number:06d}"
        checkpoint.mkdir(parents=True)
        trial.save(checkpoint)
        seal(checkpoint)
    shutil.copytree(run / "checkpoint_000001", corpus / "trial")
    shutil.copytree(corpus / "study", corpus / "store", dirs_exist_ok=True)
    shutil.copytree(corpus / "networks", corpus / "store" / "experiments" / TRIAL)
    lease = StoreLease(Store(str(corpus / "store")))
    lease.acquire(settle_s=0)
    lease.release()
    save_logits(corpus / "many.safetensors", files, torch.zeros(len(files), 10), {"classes": list(SCENES)})


@functools.lru_cache(maxsize=1)
def _prepared(corpus: Path) -> tuple[TrialConfig, TrialData]:
    """Return the configuration of a trial with three dense epochs and a prune step, and its data."""
    sizes = ("student.base_channels=8", "train.epochs=3", "train.ema_decay=0.9", "prune.ratios=[0.3]", "data.subset=5")
    config = small_trial(corpus / "tau", corpus / "cache", *sizes)
    return config, load_trial_data(config)


def _trial(corpus: Path, folder: Path) -> Trial:
    return Trial(*_prepared(corpus), folder)


def _copied(corpus: Path, folder: Path, name: str) -> Path:
    return shutil.copytree(corpus / name, folder / name)


def read_store(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Read a study by the URI of its folder: a copy of its tables, a working folder, networks, checkpoints."""
    store = _copied(corpus, folder, "store")
    for _ in range(rng.randint(1, 2)):
        damage(store, rng)
    uri = store.as_uri()
    way = rng.randrange(3)
    if way == 0:
        place = open_place(uri)
        Follower(place.folder).update()
        place.driven()
    elif way == 1:
        mirror = Mirror(folder / "work", uri)
        mirror.pull()
        mirror.pull_networks([f"experiments/{TRIAL}/step0"])
        mirror.push(last=True)
    else:
        checkpoints = TrialCheckpoints(f"{uri}/ray", TRIAL)
        checkpoints.load_newest(lambda found: load_tensors(found / "trial.pt"), lambda message: None)
        checkpoints.clear(1)


def read_lease(rng: random.Random, corpus: Path, folder: Path) -> None:
    store = folder / "store"
    shutil.copytree(corpus / "store" / LEASE, store / LEASE)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(sorted((store / LEASE).iterdir()))
        if rng.random() < 0.7 and path.is_file() and not path.is_symlink():
            content = asdict(StoreLease(Store(str(store)))._claim)
            path.write_bytes(damaged_json(content, rng))
        else:
            restructured(store, rng)
    if rng.random() < 0.5:
        claim = find_claim(Store(str(store)), time.time_ns())
        return None if claim is None else (claim.alive, None)[1]
    lease = StoreLease(Store(str(store)))
    try:
        lease.acquire(settle_s=0)
        lease.verify()
    finally:
        lease._ended.set()
    return None


def read_waveforms(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Open a damaged waveform cache: it is made again, with the same waveforms."""
    cache_dir = _copied(corpus, folder, "waveforms")
    for _ in range(rng.randint(1, 2)):
        damage(cache_dir, rng)
    files = sorted(read_split(corpus / "tau", "split5").filename)
    cache = open_cache(corpus / "tau", files, 8000, cache_dir, progress=False, num_workers=1)
    batch = cache.batch(cache.rows(files))
    assert batch.shape == (len(files), 8000) and batch.isfinite().all()


def read_trial(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Load a damaged state into a trial, and train an epoch if it is accepted."""
    place = _copied(corpus, folder, "trial")
    if rng.random() < 0.7:
        damaged_state(place / "trial.pt", rng)
    else:
        damage(place, rng)
    trial = _trial(corpus, folder / "networks")
    trial.load(place)
    next(run_trial(trial), None)


def read_dense_phase(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Continue a shared dense phase in which a file was changed; most have a valid seal."""
    parents = _copied(corpus, folder, "parents")
    state = rng.choice(sorted(next(parents.iterdir()).glob("state-*")))
    if rng.random() < 0.4:
        sealed_json(state, rng)
    else:
        damage(state, rng)
        if rng.random() < 0.8:
            reseal(state)
    trial = _trial(corpus, folder / "networks")
    for _ in zip(range(rng.choice((2, 3))), run_shared(trial, parents, CODE), strict=False):
        pass


def read_cached_logits(rng: random.Random, corpus: Path, folder: Path) -> None:
    data = (corpus / "many.safetensors").read_bytes()
    path = folder / "many.safetensors"
    path.write_bytes(damaged_tensors(data, rng))
    names = sorted(read_split(corpus / "tau", "split5").filename)
    assert load_logits(path, rng.choice((None, names)), SCENES).isfinite().all()


def read_seal(rng: random.Random, corpus: Path, folder: Path) -> None:
    ray = shutil.copytree(corpus / "store" / "ray", folder / "ray")
    checkpoint = ray / RUN / TRIAL / "checkpoint_000001"
    way = rng.random()
    if way < 0.4:
        sealed_json(checkpoint, rng)
    elif way < 0.7:
        restructured(ray, rng)
    else:
        damage(ray, rng)
    checkpoints = TrialCheckpoints(str(ray), TRIAL)
    if rng.random() < 0.5:
        checkpoints.clear(1)
    checkpoints.load_newest(lambda found: load_tensors(found / "trial.pt"), lambda message: None)
    check_seal(checkpoint)


def read_yaml_forms(rng: random.Random, corpus: Path, folder: Path) -> None:
    """Read a space or a pruning plan with aliases, anchors, tags, merged or repeated keys."""
    path = folder / "mine.yaml"
    source = rng.choice(sorted((*FOLDER.glob("*.yaml"), *SHIPPED.glob("*.yaml")))).read_text()
    parts = [source, rng.choice(YAML)]
    rng.shuffle(parts)
    path.write_text(rng.choice(("".join(parts), parts[0], rng.choice(YAML))))
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    if rng.random() < 0.7:
        load_space(str(path))
    else:
        read_plan(str(path))


_STORE = (ResultsError, StudyError, StudyLost, JournalError, SealError, OSError)
TARGETS = (
    Target("store", _STORE, read_store),
    Target("lease", (StudyError, StudyLost, OSError), read_lease),
    Target("waveforms", (DatasetError, OSError), read_waveforms),
    Target("trial state", (CheckpointError, TrainingDiverged), read_trial),
    Target("dense phase", (CheckpointError, TrainingDiverged, OSError), read_dense_phase),
    Target("cached logits", (CheckpointError,), read_cached_logits),
    Target("seal", (SealError, OSError), read_seal),
    Target("YAML forms", (SpaceError, ConfigError), read_yaml_forms),
)
