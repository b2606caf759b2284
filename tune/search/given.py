"""The trials of a refit: the manifest lists them, so nothing is sampled."""

from analysis.manifest import StudyManifest
from tune.search.history import trial_names
from tune.study.events import Event, TrialCreated
from tune.study.log import StudyLog
from tune.study.state import StudyState


class GivenTrials:
    """Takes the place of the sampler in a refit. It has no state, and draws nothing."""

    def apply(self, event: Event) -> None:
        """Do nothing: no event changes the list of trials."""

    def digest(self) -> None:
        """Return None, because there is no state to compare."""

    def draw(self, log: StudyLog) -> None:
        """Add no trial to `log`, because all trials exist when a driver begins."""

    def settle(self, log: StudyLog) -> None:
        """Do nothing: there is no sampler that waits for results."""


def missing_trials(manifest: StudyManifest, state: StudyState) -> list[TrialCreated]:
    """Return the events that create the trials of a refit that `state` does not have.

    Each configuration in the `manifest` of the refit gets `seeds_per_config` trials with different seeds.
    """
    return [
        TrialCreated(
            trial=name,
            config_id=given.config_id,
            replicate=i,
            params=given.params,
            values=given.values,
            widths=list(given.widths),
        )
        for given in manifest.requested.refit
        for i, name in enumerate(trial_names(given.config_id, manifest.requested.seeds_per_config))
        if name not in state.trials
    ]
