"""Fine-tuned teachers: their logits, ensembles of them, shipped recipes, commands."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ascmodels.teachers import (
    build_teacher,
    load_teacher,
)
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.tau import SCENES
from trainables import cache_logits, compare_teachers, finetune_teacher
from trainables.config.compose import CONFIG_DIR, compose
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged, predict
from trainables.engine.losses import kd_loss
from trainables.inputs.clips import filenames
from trainables.teachers.cached_logits import logits_file, teacher_logits
from trainables.teachers.ensemble import combine, greedy
from trainables.teachers.fine_tuning import fine_tuned_teacher, teacher_summary, validation_hash
from trainables.teachers.logits import folder_hash, load_logits, read_manifest
from trainables.trial.data import data_key, load_trial_data

VIT_WORDS = ("teacher.model.family=vit", "teacher.model.hidden_size=16", "teacher.model.heads=2")
CNN_WORDS = ("teacher.model.family=cnn", "teacher.model.name=test_efficientnet")


@pytest.fixture(scope="module")
def teachers(words: list[str]) -> tuple[TrialConfig, tuple[Path, Path]]:
    """Return a configuration, and the folders of a ViT and a CNN that were fine-tuned on its clips."""
    teacher_folders = [
        fine_tuned_teacher(compose([*words, *more])) for more in ((*VIT_WORDS, "teacher.lr_decay=0.7"), CNN_WORDS)
    ]
    config = compose(words)
    ckpts = tuple(str(folder) for folder in teacher_folders)
    return replace(config, distill=replace(config.distill, teacher_ckpts=ckpts)), (
        teacher_folders[0],
        teacher_folders[1],
    )


@pytest.mark.slow
def test_cached_logits_give_the_loss_of_the_teacher_itself(teachers) -> None:
    """Without augmentation, offline equals online distillation up to float16 rounding (2^-11 of a logit)."""
    config, folders = teachers
    data = load_trial_data(config)
    for folder in folders:
        teacher, extra = load_teacher(folder, SCENES)
        front_end = FrontEndConfig(**extra["frontend"])
        assert front_end.sample_rate != config.frontend.sample_rate  # teacher and student have different front-ends
        own = load_trial_data(replace(config, frontend=front_end))
        assert filenames(own.train) == filenames(data.train)
        online = predict(teacher, own.train, LogMel(front_end))
        offline = teacher_logits(config, folder, filenames(data.train))
        bound = online.abs().max().item() * 2**-11
        assert (online - offline).abs().max().item() <= bound
        student = torch.randn(online.shape, generator=torch.Generator().manual_seed(1))
        labels = torch.from_numpy(data.train.labels.copy())
        losses = [kd_loss(student, labels, t, 0.3, 2.0).item() for t in (online, offline)]
        # d loss / d logit is at most (1 - alpha) T p (|log p - log q| + ...) a clip: a few times the bound
        assert losses[0] == pytest.approx(losses[1], abs=50 * bound)
        assert not torch.equal(online, offline)  # the two are computed separately


@pytest.mark.slow
def test_ensembles_reach_the_training_clips(teachers) -> None:
    config, folders = teachers
    data = load_trial_data(config)
    names, validation_names = filenames(data.train), filenames(data.validation)
    single = [teacher_logits(config, folder, names) for folder in folders]
    keys = set()

    def distilled(**values) -> torch.Tensor:
        changed = replace(config, distill=replace(config.distill, **values))
        keys.add(data_key(changed))
        teacher = load_trial_data(changed).train.teacher
        assert teacher is not None
        return teacher

    assert torch.equal(distilled(), combine(single, "logits"))
    assert torch.equal(distilled(ensemble="probabilities"), combine(single, "probabilities"))
    assert torch.equal(distilled(teacher_weights=(1.0, 3.0)), combine(single, "logits", (1, 3)))
    chosen = greedy([teacher_logits(config, f, validation_names) for f in folders], data.validation.labels)
    assert torch.equal(distilled(ensemble="greedy"), combine(single, "greedy", chosen.weights))
    files = tuple(str(logits_file(config, folder)) for folder in folders)
    assert torch.equal(distilled(teacher_ckpts=files), combine(single, "logits"))  # members given as files of logits
    assert len(keys) == 5  # a reused actor loads the data again for each key


@pytest.mark.slow
def test_the_manifest_of_cached_logits(teachers) -> None:
    config, folders = teachers
    data = load_trial_data(config)
    path = logits_file(config, folders[0])
    manifest = read_manifest(path)
    assert manifest["classes"] == list(SCENES)
    assert manifest["validation"] == validation_hash(data.validation)
    assert manifest["frontend"]["n_mels"] == 32
    summaries = teacher_summary(path), teacher_summary(folders[0])
    assert summaries[0] == summaries[1]
    everything = {*filenames(data.train), *filenames(data.validation)}
    assert len(load_logits(path, sorted(everything), SCENES)) == len(everything)
    stamp = path.stat().st_mtime_ns
    other_division = replace(config, seed=3)  # another division of the same clips has the same logits
    assert logits_file(other_division, folders[0]) == path
    assert path.stat().st_mtime_ns == stamp
    content, logits = path.read_bytes(), load_logits(path, sorted(everything), SCENES)
    for damaged in (content[:500], content[:-2], b"", b"[" * 100_000):  # they are computed again
        path.write_bytes(damaged)
        assert logits_file(config, folders[0], content=data.train.cache.content) == path
        assert torch.equal(load_logits(path, sorted(everything), SCENES), logits)


@pytest.mark.slow
def test_a_teacher_that_diverges_keeps_its_best_epoch(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import trainables.teachers.fine_tuning as module

    epochs, real = [], module.train_epoch

    def train(teacher, *rest):
        epochs.append(1)
        if len(epochs) == 2:
            raise TrainingDiverged("teacher, epoch 2: the loss is nan at step 1 of 4")
        return real(teacher, *rest)

    monkeypatch.setattr(module, "train_epoch", train)
    config = compose([*words, *VIT_WORDS, "teacher.train.lr=0.01"])
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 1 of 4; .* 1, is saved in ") as error:
        fine_tuned_teacher(config)
    folder = Path(str(error.value).split(" is saved in ")[1].partition(": ")[0])
    _, extra = load_teacher(folder, SCENES)
    assert extra["epoch"] == 1
    assert not folder.with_name(folder.name.removesuffix("-diverged")).exists()  # no valid teacher has this key
    epochs.clear()
    monkeypatch.undo()
    assert fine_tuned_teacher(config) == folder.with_name(folder.name.removesuffix("-diverged"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_teacher(words: list[str], tmp_path: Path) -> None:
    """Also with patchout and dropout, which draw random numbers in the network."""
    random = ("teacher.model.patchout_freq=1", "teacher.model.dropout=0.1", "teacher.train.ema_decay=0.9")
    config = compose([*words, *VIT_WORDS, *random, "teacher.augment.mixup_alpha=0.3", "teacher.train.accumulate=2"])
    again = replace(config, data=replace(config.data, cache_dir=str(tmp_path)))
    torch.manual_seed(1)
    first = fine_tuned_teacher(config)
    torch.manual_seed(2)
    second = fine_tuned_teacher(again)
    assert first.name == second.name
    assert folder_hash(first) == folder_hash(second)
    assert load_teacher(first, SCENES)[0].describe()["config"]["patchout_freq"] == 1


@pytest.mark.slow
def test_a_pretrained_file_is_known_by_its_content(
    words: list[str], timm_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "weights.safetensors"
    stored = safetensors.torch.load_file(timm_folders["test_efficientnet"] / "model.safetensors")
    safetensors.torch.save_file(stored, source)
    config = compose([*words, *CNN_WORDS, f"teacher.model.pretrained='{source}'", "teacher.train.epochs=1"])
    first = fine_tuned_teacher(config)
    assert fine_tuned_teacher(config) == first
    stored["conv_stem.weight"] *= 2
    safetensors.torch.save_file(stored, source)
    assert fine_tuned_teacher(config) != first


def test_amp_that_the_device_lacks(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        fine_tuned_teacher(compose([*words, *VIT_WORDS, "teacher.train.amp=fp16"]))
    with pytest.raises(ConfigError, match=r"teacher\.lr_decay=0\.0: expected a factor"):
        compose([*words, "teacher.lr_decay=0"])


# --- shipped recipes and commands ---


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "teacher").glob("*.yaml")))
def test_shipped_recipes_build(name: str) -> None:
    """Each recipe is built at full size, without pretrained weights, with every profile."""
    quick, full = (compose([f"teacher={name}", f"profile={p}"]).teacher for p in ("quick", "full"))
    assert (quick.frontend, quick.train, quick.augment) == (full.frontend, full.train, full.augment)
    c, sizes = quick, {"hidden_size": 768, "layers": 12, "heads": 12, "patch_size": 16, "stride": 10}
    model = replace(c.model, pretrained=None, **(sizes if name in ("ast", "beats") else {}))
    with torch.device("meta"):
        teacher = build_teacher(model, 10, c.frontend.n_mels, c.frontend.frames)
    millions = sum(p.numel() for p in teacher.parameters()) / 1e6
    expected = {"ast": 85.3, "beats": 90.3, "vit": 85.4, "passt": 85.4, "cnn": 3.4}
    expected |= {"ast_small": 0.4, "vit_small": 0.4, "cnn_small": 0.6}
    assert millions == pytest.approx(expected[name], abs=0.1)


def test_the_default_teacher_stays() -> None:
    assert compose(["teacher=ast_small"]) == compose([])


@pytest.mark.slow
def test_commands(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "runs")]
    base = [*storage, *(w for w in words if "cache_dir" not in w)]

    def run(command, *more: str) -> tuple[int, str]:
        rc = command.main([*base, *more])
        return rc, " ".join(capsys.readouterr().out.split())

    one, two = (str(tmp_path / name) for name in ("t1.ckpt", "t2.ckpt"))
    rc, output = run(finetune_teacher, *VIT_WORDS, "--out", one)
    assert rc == 0
    assert "validation: macro_avg_acc" in output
    assert one in output
    accuracy = json.loads((Path(one) / "teacher.json").read_text())["val_macro_avg_acc"]
    assert f"macro_avg_acc {accuracy:.1%}" in output
    rc, output = run(finetune_teacher, *VIT_WORDS, "--out", one)
    assert rc == 0
    assert "nothing is trained" in output
    rc, output = run(finetune_teacher, *CNN_WORDS, "--out", one)
    assert rc == 2
    assert "another teacher" in output
    (tmp_path / "mine").mkdir()
    rc, output = run(finetune_teacher, *CNN_WORDS, "--out", str(tmp_path / "mine"))
    assert rc == 2
    assert "mine" in output
    assert run(finetune_teacher, *CNN_WORDS, "--out", two)[0] == 0

    rc, output = run(cache_logits, f"--teacher_ckpts={one},{two}")
    assert rc == 0
    for part in ("logits", "probabilities", "greedy", "optimistic", ".safetensors", f"{accuracy:.1%}"):
        assert part in output
    files = sorted((tmp_path / "runs" / "cache").glob("logits-*.safetensors"))
    assert len(files) == 2
    assert run(cache_logits, f"--teacher_ckpts={files[0]},{two}")[0] == 0
    rc, output = run(cache_logits)
    assert rc == 2
    assert "--teacher_ckpts is missing" in output
    rc, output = run(cache_logits, f"--teacher_ckpts={one},{two}", "--teacher_weights=1,2,3")
    assert rc == 2
    assert "expected 2, one for each teacher" in output


@pytest.mark.slow
def test_compare_teachers(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("teacher.model.hidden_size=16", "teacher.model.layers=1", "teacher.train.epochs=1")
    base = ["--storage", str(tmp_path), *(w for w in words if "cache_dir" not in w), *small]
    chosen = ["--teachers", "vit_small,ast_small", "--subsets", "100", "--seeds", "2"]
    assert compare_teachers.main([*base, *chosen]) == 0
    first = (tmp_path / "teachers.csv").read_text()
    (row,) = csv.DictReader(first.splitlines())
    names = ["subset", "seeds", "train_clips", "validation_clips"]
    for name in ("vit_small", "ast_small", "logits", "probabilities", "greedy"):
        names += [name, f"{name}_std"]
    assert list(row) == names
    assert float(row["greedy"]) >= max(float(row["vit_small"]), float(row["ast_small"])) - 1e-9
    folders = sorted((tmp_path / "cache").glob("teacher-????????????????"))
    assert len(folders) == 4
    accuracy = {f: json.loads((f / "teacher.json").read_text()) for f in folders}
    vits = [a["val_macro_avg_acc"] for a in accuracy.values() if a["model"]["config"]["family"] == "vit"]
    assert float(row["vit_small"]) == pytest.approx(sum(vits) / 2, abs=1e-6)
    stamps = [f.stat().st_mtime_ns for f in folders]
    capsys.readouterr()
    assert compare_teachers.main([*base, *chosen]) == 0  # repeating the command trains nothing
    assert [f.stat().st_mtime_ns for f in folders] == stamps
    assert (tmp_path / "teachers.csv").read_text() == first
    assert "validation macro accuracy" in capsys.readouterr().out
    for wrong, message in (
        (["--teachers", "vit_smal"], "--teachers: unknown teacher 'vit_smal';"),
        (["--teachers", "ast,ast"], "--teachers ast,ast: "),
        (["--subsets", "7"], "--subsets: unknown subset '7';"),
        (["--seeds", "0"], "--seeds 0: "),
        (["--subset=25"], "--subset=25: "),
    ):
        assert compare_teachers.main([*base, *wrong]) == 2
        assert message in " ".join(capsys.readouterr().out.split())
