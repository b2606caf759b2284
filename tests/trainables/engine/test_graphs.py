"""Training steps as CUDA graphs (trainables/engine/graphs.py), waveforms in GPU memory or read ahead.

A CPU cannot record a graph, so there the recording is replaced: `Replayed` keeps the tensors of the recorded step, as a
graph does, and computes from them. The tests with the marker gpu record real graphs.
"""

import logging
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.augment import AugmentConfig
from data.features import LogMel
from tests.support.trainables.epochs import FRONT_END, OFF, distilled, student
from trainables.config.compose import compose
from trainables.config.train import TrainConfig
from trainables.engine.graphs import WARM_UP, Recorded, StepGraphs, graphs_for
from trainables.engine.loop import Epoch, predict, train_epoch
from trainables.engine.optimizer import load_state, new_optimizer
from trainables.inputs.device_clips import Ahead, ResidentWaveforms

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(roll_s=0.1, freq_mask=4, time_mask=3, mixstyle_p=0.5, mixup_alpha=0.4)


class Replayed(StepGraphs):
    """Steps on a CPU that are computed from the tensors of the recorded step, into the memory of its results."""

    def __init__(self):
        super().__init__()
        self.recorded = self.replayed = 0

    def warm_up(self, train, step):
        return train(step)

    def record(self, train, step):
        self.recorded += 1
        n = sum(len(batch.labels) for batch in step)
        results = torch.zeros(2), torch.zeros(2, n, dtype=torch.int64)

        def replay():
            self.replayed += 1
            for memory, new in zip(results, train(step), strict=True):
                memory.copy_(new)

        return Recorded(step, results, replay)


class Broken(Replayed):
    def record(self, train, step):
        raise torch.OutOfMemoryError("no memory for another graph")


def curve(clips, graphs, device=CPU, n_epochs=8, augment=AUGMENT):
    """Loss and accuracy of each epoch of a training of 4 steps per epoch, and its last weights."""
    torch.manual_seed(0)
    model = student().to(device)
    optimizer = new_optimizer(model, 1e-4, recorded=graphs is not None and device.type == "cuda")
    results = []
    for number in range(n_epochs):
        rng, front_end = np.random.default_rng([3, number]), LogMel(FRONT_END).to(device)
        config = TrainConfig(batch_size=16, amp="off")
        epoch = Epoch(front_end, augment, config, distilled, lambda i: 0.01 / (i + 1), rng, graphs=graphs)
        result = train_epoch(model, optimizer, clips, epoch)
        results.append([result.loss, result.acc, result.macro_avg_acc])
    return results, [p.detach().cpu() for p in model.state_dict().values()]


def test_recorded_steps_train_as_steps_one_by_one(clips):
    graphs = Replayed()
    expected, weights = curve(clips, None)
    found, same = curve(replace(clips, resident=ResidentWaveforms(clips.cache, CPU)), graphs)
    assert found == expected
    assert all(map(torch.equal, weights, same))
    assert graphs.recorded <= 4  # two sizes of batches, with and without Freq-MixStyle
    assert graphs.replayed >= 32 - WARM_UP * 4
    assert len({round(loss, 4) for loss, *_ in found}) == len(found)


def test_a_step_that_cannot_be_recorded_runs_without_a_graph(clips, caplog):
    expected, _ = curve(clips, None)
    with caplog.at_level(logging.WARNING):
        found, _ = curve(clips, Broken())
    assert found == expected
    assert len([r for r in caplog.records if "no memory for another graph" in r.message]) == 1


@pytest.mark.parametrize(
    ("words", "resident", "named"),
    [
        ([], True, "GPU"),
        (["train.amp=fp16"], True, "fp16"),
        (["train.accumulate=2"], True, "accumulate=2"),
        (["augment.dir_p=0.5", "augment.dir_dir=x"], True, "dir_p=0.5"),
        (["distill.mode=online", "distill.teacher_ckpts=[x]"], True, "distill.mode=online"),
        ([], False, "memory"),
    ],
)
def test_why_there_are_no_graphs_is_logged(words, resident, named, caplog):
    device = CPU if named == "GPU" else torch.device("cuda")
    config = compose(["train.cuda_graph=true", *words])
    with caplog.at_level(logging.WARNING):
        assert graphs_for(config, device, resident) is None
    assert named in caplog.text
    caplog.clear()
    assert graphs_for(replace(config, train=replace(config.train, cuda_graph=False)), device, resident) is None
    assert not caplog.text


def test_graphs_are_used_where_they_are_possible():
    config = compose(["train.cuda_graph=true"])
    assert isinstance(graphs_for(config, torch.device("cuda"), resident=True), StepGraphs)


def test_resident_waveforms_equal_those_of_the_cache(clips):
    rows = clips.rows[[3, 0, 7]]
    resident = ResidentWaveforms(clips.cache, CPU)
    assert torch.equal(resident.batch(torch.from_numpy(rows)), clips.cache.batch(rows))
    expected, weights = curve(clips, None, n_epochs=2)
    found, same = curve(replace(clips, resident=resident), None, n_epochs=2)
    assert found == expected
    assert all(map(torch.equal, weights, same))
    front_end, model = LogMel(FRONT_END), student()
    logits = predict(model, clips, front_end)
    assert torch.equal(predict(model, replace(clips, resident=resident), front_end), logits)
    elsewhere = replace(clips, resident=ResidentWaveforms(clips.cache, torch.device("meta")))  # as on a GPU
    assert torch.equal(predict(model, elsewhere, front_end), logits)
    assert curve(elsewhere, None, n_epochs=2)[0] == expected


def test_batches_are_read_ahead_in_their_order(clips):
    parts = [clips.rows[:3], clips.rows[3:8], clips.rows[8:9]]
    with closing(Ahead(clips.cache, parts, CPU)) as source:
        with pytest.raises(ValueError, match=r"rows=.*next batch"):
            source.batch(parts[1])
        for part in parts:
            assert torch.equal(source.batch(part), clips.cache.batch(part))
        with pytest.raises(ValueError, match=r"rows=.*next batch"):
            source.batch(parts[2])


def test_a_restored_optimiser_keeps_its_own_settings(clips):
    model = student()
    old = new_optimizer(model, 0.5)
    model(torch.randn(2, 1, 16, 33)).sum().backward()
    old.step()
    saved = old.state_dict()
    saved["param_groups"][0] |= {"lr": torch.tensor(0.3), "capturable": True, "fused": True}  # of a GPU
    new = new_optimizer(model, 0.1)
    load_state(new, saved)
    group = new.param_groups[0]
    assert (group["weight_decay"], group["capturable"], group["fused"]) == (0.1, False, None)
    for now, then in zip(new.state.values(), old.state.values(), strict=True):
        assert torch.equal(now["exp_avg"], then["exp_avg"])
    first = next(iter(saved["state"].values()))
    first["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"exp_avg.*\[3\]"):
        load_state(new_optimizer(model, 0.1), saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_recorded_step_on_a_gpu_follows_the_same_curve(clips):
    """52 steps with the same draws: the losses of graphs and of single steps agree within float tolerance."""
    device = torch.device("cuda")
    there = replace(clips, resident=ResidentWaveforms(clips.cache, device))
    graphs = StepGraphs()
    expected, weights = curve(there, None, device, n_epochs=13)
    found, same = curve(there, graphs, device, n_epochs=13)
    assert len(graphs._recorded) >= 2
    assert np.allclose(found, expected, rtol=2e-2, atol=2e-2)
    for now, then in zip(same, weights, strict=True):
        assert torch.allclose(now.float(), then.float(), rtol=5e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_read_ahead_on_a_gpu_train_as_resident_ones(clips):
    device = torch.device("cuda")
    there = replace(clips, resident=ResidentWaveforms(clips.cache, device))
    results = [curve(some, None, device, n_epochs=2, augment=OFF)[0] for some in (there, clips)]
    assert np.allclose(*results, rtol=1e-3, atol=1e-3)
