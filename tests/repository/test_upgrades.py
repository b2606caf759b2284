"""Private names of other libraries that we use, each in a single file. A test that fails here after an upgrade names
the file to adapt; the upper bounds in setup.cfg prevent such upgrades until then."""

import inspect

import optuna
import pytest
import timm
import torch
import torch_pruning
from optuna.trial import create_trial
from ray.tune.schedulers import PopulationBasedTraining

from tests.support.imports import files_that_import


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_checkpoint_or_exploit", ["self", "trial", "tune_controller", "upper_quantile", "lower_quantile"]),
        ("_exploit", ["self", "tune_controller", "trial", "trial_to_clone"]),
        ("_get_new_config", ["self", "trial", "trial_to_clone"]),
    ],
)
def test_population_based_training_is_as_ray_adapter_overrides_it(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(PopulationBasedTraining, name)).parameters) == parameters


def test_state_of_population_based_training_is_as_ray_adapter_reads_it() -> None:
    scheduler = PopulationBasedTraining(
        metric="accuracy", mode="max", hyperparam_mutations={"lr": [1.0, 2.0]}, perturbation_interval=3
    )
    assert scheduler._trial_state == {} and scheduler._perturbation_interval == 3
    source = inspect.getsource(PopulationBasedTraining)
    for name in ("last_train_time", "last_score", "last_checkpoint", "random.choice(upper_quantile)"):
        assert name in source, f"tune/search/ray_adapter.py: Population relies on {name}"


def test_tune_asks_the_stopper_about_each_result_first() -> None:
    """tune/search/ray_adapter.py writes an event in the stopper, which Ray must call before scheduler and callbacks."""
    from ray.tune.execution.tune_controller import TuneController

    source = inspect.getsource(TuneController._process_trial_result)
    places = [
        source.index(call)
        for call in ("self._stopper(", "_scheduler_alg.on_trial_result", "_callbacks.on_trial_result")
    ]
    assert places == sorted(places)


def test_processes_can_be_named() -> None:
    from ray._raylet import setproctitle  # type: ignore[attr-defined]

    assert callable(setproctitle)


def test_channel_groups_of_torch_pruning_are_as_pruning_reads_them() -> None:
    assert files_that_import("torch_pruning") == {"ascmodels/compress/groups.py"}
    groups = vars(torch_pruning.pruner.BasePruner)["_get_channel_groups"]
    assert list(inspect.signature(groups).parameters) == ["self", "group"]


def test_vision_transformers_of_timm_are_as_teacher_timm_uses_them() -> None:
    assert files_that_import("timm") == {"ascmodels/teachers/timm.py"}
    from timm.layers.pos_embed import resample_abs_pos_embed

    assert not isinstance(resample_abs_pos_embed, str)  # pyright takes the decorated function for a string
    resampled = resample_abs_pos_embed(torch.zeros(1, 5, 4), new_size=[3, 2], old_size=[2, 2], num_prefix_tokens=1)
    assert resampled.shape == (1, 7, 4)
    network = timm.create_model("deit_tiny_patch16_224", in_chans=1, num_classes=3, depth=1, embed_dim=12, num_heads=1)
    for name in ("patch_embed", "pos_embed", "blocks", "norm_pre", "num_prefix_tokens"):
        assert hasattr(network, name), f"ascmodels/teachers/timm.py relies on {name}"


def test_optuna_is_used_by_its_public_names() -> None:
    """tune/search/sampler.py asks Optuna for a trial, sets its constraint, and adds it to another study in a replay."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.NSGAIISampler(seed=0))
    optuna_trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    optuna_trial.set_constraint("limits", -0.5)
    (frozen,) = study.get_trials(deepcopy=False)
    again = create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=frozen.params,
        distributions=frozen.distributions,
        constraints=frozen.constraints,
        system_attrs={k: v for k, v in frozen.system_attrs.items() if not k.startswith("constraints:")},
    )
    assert again.system_attrs == frozen.system_attrs
    assert again.constraints == frozen.constraints == {"limits": -0.5}


def test_foreach_lerp_of_torch() -> None:
    """trainables/engine/loop.py averages weights by torch._foreach_lerp_."""
    means, news = [torch.zeros(2)], [torch.ones(2)]
    torch._foreach_lerp_(means, news, 0.25)  # type: ignore[attr-defined]
    assert means[0].tolist() == [0.25, 0.25]
