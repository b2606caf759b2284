"""Online distillation (distill.mode=online): the teachers predict each batch with the student's augmentation.

The teachers are not trained. (In offline distillation, they predict each clip once, before the training.)
`load_online` loads the teachers once. `OnlineTeachers.batch_teacher` returns the function that the training loop calls
for each batch.

Each teacher reads the clips of a batch from a waveform cache at its own sample rate. The teacher's clips get the random
draws of the student's augmentation: the same impulse responses, the same roll, the same mixup of log-mels.
Freq-MixStyle and masks are applied to the student's features only, because a mask hides a part of the clip and both
methods act on the student's mel bins. Without augmentation, the logits equal the cached logits of offline distillation,
up to their rounding to float16.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import Teacher, load_teacher
from data import tau
from data.augment import Draws, augment_waveforms
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.impulse import impulses_for
from trainables.config.schema import TrialConfig
from trainables.engine.device import autocast
from trainables.engine.loop import BatchTeacher, TeacherOutput
from trainables.inputs.clips import Clips, SplitClips, filenames, load_clips
from trainables.teachers.cached_logits import ensemble_weights, teacher_front_end
from trainables.teachers.ensemble import combine


@dataclass(frozen=True)
class Member:
    """One teacher of the ensemble, with its front-end, and the training clips at its sample rate."""

    teacher: Teacher
    front_end: FrontEndConfig
    clips: Clips  # in the order of the student's training clips


@dataclass(frozen=True)
class OnlineTeachers:
    """The teachers of online distillation: trained networks that predict each augmented batch and do not change.

    They are on the CPU until `batch_teacher` moves them to a device.
    """

    members: tuple[Member, ...]
    method: str  # distill.ensemble
    weights: tuple[float, ...]  # one for each member; empty: equal weights

    def batch_teacher(
        self, augment: AugmentConfig, device: torch.device, amp: str = "off", with_features: bool = False
    ) -> BatchTeacher:
        """Return a function that computes the logits of the ensemble for one batch of training clips.

        The function's arguments are the indices `[B]` of the batch among the student's training clips, the random draws
        of the student's augmentation `augment`. If `with_features`, it also returns the features of the teacher; there
        must be only one teacher then. `amp` is the mixed precision (train.amp).
        """
        front_ends = [LogMel(m.front_end).to(device) for m in self.members]
        impulses = [impulses_for(augment, m.front_end.sample_rate, device) for m in self.members]
        for member in self.members:
            member.teacher.to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def predict(picked: np.ndarray, draws: Draws) -> TeacherOutput:
            logits, features = [], None
            for member, front_end, responses in zip(self.members, front_ends, impulses, strict=True):
                waveforms = member.clips.cache.batch(member.clips.rows[picked], device)  # [B, S]
                x = front_end(augment_waveforms(waveforms, draws, member.front_end.sample_rate, responses))
                x = (draws.mixup(x) if draws.mixup else x).to(memory_format=torch.channels_last)  # [B, 1, F, T]
                with autocast(amp, device):
                    logits.append(member.teacher(x).float())
                    features = member.teacher.features(x).float() if with_features else None
            return TeacherOutput(combine(logits, self.method, self.weights), features)

        return predict


def load_online(config: TrialConfig, data: SplitClips, progress: bool = False) -> OnlineTeachers:
    """Load the teachers of `distill.teacher_ckpts`, and open the clips `data.train` at the sample rate of each teacher.

    `progress` shows progress bars while clips are resampled and logits are computed.
    Raise CheckpointError if an entry is a logits file instead of a teacher's folder, or if a teacher is damaged or has
    other classes than `tau.SCENES`.
    """
    members = []
    for source in map(Path, config.distill.teacher_ckpts):
        if source.is_file():
            raise CheckpointError(
                f"{source} is a file; distill.mode=online needs the folder of a teacher: name the folder in "
                "distill.teacher_ckpts, or set distill.mode=offline to use a logits file"
            )
        teacher, extra = load_teacher(source, tau.SCENES)
        front_end = teacher_front_end(source, extra)
        cache = load_clips(config, front_end.sample_rate, progress, data.train.cache.content).train.cache
        clips = Clips(cache, cache.rows(filenames(data.train)), data.train.labels, data.train.devices)
        members.append(Member(teacher, front_end, clips))
    return OnlineTeachers(tuple(members), config.distill.ensemble, ensemble_weights(config, data, progress))
