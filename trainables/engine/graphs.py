"""Training steps as CUDA graphs: the GPU repeats a recorded step, and the CPU launches it with one call.

    graphs = StepGraphs()
    figures, classes = graphs.run(train, step)      # as train(step)

A graph has fixed shapes and no decisions, so there is one graph for each kind of step: the number of clips, and whether
the batch gets Freq-MixStyle. An epoch has at most four kinds. The first steps of a kind run without a graph, because
PyTorch and its libraries allocate memory and choose algorithms in them. If a step cannot be recorded, the training goes
on without graphs.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from trainables.config.schema import TrialConfig

WARM_UP = 3  # steps of each kind that run without a graph
_LOG = logging.getLogger(__name__)
# from the batches of a step to its loss and gradient norm [2], and its predicted and true classes [2, B]
Train = Callable[[Sequence[Any]], tuple[torch.Tensor, torch.Tensor]]


def _why_not(config: TrialConfig, device: torch.device, resident: bool) -> str | None:
    """Return why the steps of a training cannot be recorded; None if they can. Arguments: see `graphs_for`."""
    for found, reason in (
        (device.type != "cuda", "the training is not on a GPU"),
        (not resident, "the waveforms do not fit into half of the GPU's free memory"),
        (config.train.amp == "fp16", "train.amp=fp16 decides in each step whether to change the weights"),
        (config.train.accumulate > 1, f"train.accumulate={config.train.accumulate} gives too many kinds of step"),
        (
            config.augment.dir_p > 0,
            f"augment.dir_p={config.augment.dir_p} selects another number of clips in each step",
        ),
        (config.distill.taught and config.distill.mode == "online", "distill.mode=online reads clips in each step"),
    ):
        if found:
            return reason
    return None


@dataclass(frozen=True)
class Recorded:
    """A recorded step: `replay` computes `results` from the tensors of `step`."""

    step: Sequence[Any]
    results: tuple[torch.Tensor, torch.Tensor]
    replay: Callable[[], None]


class StepGraphs:
    """The recorded steps of one network and its optimiser."""

    def __init__(self):
        self._recorded: dict[tuple, Recorded] = {}
        self._runs = Counter[tuple]()
        self._pool: Any = None
        self._failed = False

    def run(self, train: Train, step: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the results of `train(step)`. `step` has the batches of one step (dataclasses of tensors)."""
        kind = tuple((len(batch.labels), batch.draws.mixstyle is not None) for batch in step)
        self._runs[kind] += 1
        if self._failed:
            return train(step)
        if self._runs[kind] <= WARM_UP:
            return self.warm_up(train, step)
        recorded = self._recorded.get(kind)
        if recorded is None:
            try:
                recorded = self._recorded[kind] = self.record(train, [_mapped(batch, torch.clone) for batch in step])
            except RuntimeError as error:  # also out of memory, which the training without graphs may avoid
                self._failed = True
                _LOG.warning("the training goes on without CUDA graphs, because a step cannot be recorded: %s", error)
                return train(step)
        torch._foreach_copy_(list(_tensors(recorded.step)), list(_tensors(step)))  # type: ignore[attr-defined]
        recorded.replay()
        figures, classes = recorded.results
        return figures.clone(), classes.clone()  # the next replay writes to the same memory

    def warm_up(self, train: Train, step: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run `train(step)` as PyTorch asks for before a recording: on another stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = train(step)
        torch.cuda.current_stream().wait_stream(stream)
        return results

    def record(self, train: Train, step: Sequence[Any]) -> Recorded:
        """Record `train(step)`, without running it. All graphs share one pool of memory, as only one runs at a time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = train(step)
        self._pool = graph.pool()
        return Recorded(step, results, graph.replay)


def _mapped(item: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of the dataclass `item`, with `function` applied to each tensor in it."""
    if isinstance(item, torch.Tensor):
        return function(item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{f.name: _mapped(getattr(item, f.name), function) for f in fields(item)})
    return item


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in `item`: a sequence of dataclasses of tensors and dataclasses."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _tensors(part)
    elif is_dataclass(item):
        for f in fields(item):
            yield from _tensors(getattr(item, f.name))


def graphs_for(config: TrialConfig, device: torch.device, resident: bool) -> StepGraphs | None:
    """Return an object that records the steps of a training with `config` on `device`; None: they run one by one.

    `resident` says whether the waveforms are in the memory of the GPU. If train.cuda_graph asks for graphs which are
    impossible, the reason is logged.
    """
    if not config.train.cuda_graph:
        return None
    if reason := _why_not(config, device, resident):
        _LOG.warning("train.cuda_graph=true, but the training runs without CUDA graphs: %s", reason)
        return None
    return StepGraphs()
