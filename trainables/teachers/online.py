"""Online distillation (distill.mode=online): the teachers hear each batch as it was augmented for the student.

    online = load_online(config, data.train)                   # the teachers of distill.teacher_ckpts, once
    hear = online.listener(augment, device, amp="off", with_features=False)
    heard = hear(picked, draws, mix)                           # Heard: logits [B, C], features [B, D]

Every teacher takes its clips from the waveform cache at its own sample rate (nothing is resampled twice), and goes
through what was drawn for the student's: the same impulse response, the same roll, the same mixup of its log-mels. So
without augmentation its logits are those that offline distillation has cached, to the rounding of float16. Freq-
MixStyle and masks stay the student's own: they work on its mel bins, and a teacher is asked about the whole clip.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import Teacher, load_teacher
from data import tau
from data.augment import AugmentConfig, Draws, Mix, augment_waveforms
from data.features import FrontEndConfig, LogMel
from data.impulse import impulses_for
from trainables.config.schema import TrialConfig
from trainables.config.train import AMP
from trainables.engine.loop import Heard, Listener
from trainables.inputs.clips import Clips, SplitClips, filenames, load_clips
from trainables.teachers.cached_logits import ensemble_weights
from trainables.teachers.ensemble import combine


@dataclass(frozen=True)
class Member:
    """One teacher with the training clips at its sample rate, in the student's order."""

    teacher: Teacher
    front_end: FrontEndConfig
    clips: Clips


@dataclass(frozen=True)
class OnlineTeachers:
    """The ensemble, on the CPU until a trial listens to it."""

    members: tuple[Member, ...]
    method: str  # distill.ensemble
    weights: tuple[float, ...]

    def listener(
        self, augment: AugmentConfig, device: torch.device, amp: str = "off", with_features: bool = False
    ) -> Listener:
        """What `Epoch.teachers` wants: from the clips picked and what was drawn for them to what is said of them."""
        front_ends = [LogMel(m.front_end).to(device) for m in self.members]
        impulses = [impulses_for(augment, m.front_end.sample_rate, device) for m in self.members]
        for member in self.members:
            member.teacher.to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def hear(picked: np.ndarray, draws: Draws, mix: Mix | None) -> Heard:
            logits, features = [], None
            for member, front_end, responses in zip(self.members, front_ends, impulses, strict=True):
                waveforms = member.clips.cache.batch(member.clips.rows[picked], device)  # [B, S]
                x = front_end(augment_waveforms(waveforms, draws, member.front_end.sample_rate, responses))
                x = (mix(x) if mix else x).to(memory_format=torch.channels_last)  # [B, 1, F, T]
                with torch.autocast(device.type, AMP[amp], enabled=amp != "off"):
                    logits.append(member.teacher(x).float())
                    features = member.teacher.features(x).float() if with_features else None
            return Heard(combine(logits, self.method, self.weights), features)

        return hear


def load_online(config: TrialConfig, data: SplitClips, progress: bool = False) -> OnlineTeachers:
    """The teachers of `distill.teacher_ckpts` for the training clips of `data`.

    CheckpointError for logits in a teacher's place, a damaged teacher, one of other classes.
    """
    members = []
    for source in map(Path, config.distill.teacher_ckpts):
        if source.is_file():
            raise CheckpointError(f"{source} is a file; distill.mode=online needs the folder of a teacher")
        teacher, extra = load_teacher(source, tau.SCENES)
        front_end = FrontEndConfig(**extra["frontend"])
        cache = load_clips(config, front_end.sample_rate, progress, data.train.cache.content).train.cache
        clips = Clips(cache, cache.rows(filenames(data.train)), data.train.labels, data.train.devices)
        members.append(Member(teacher, front_end, clips))
    return OnlineTeachers(tuple(members), config.distill.ensemble, ensemble_weights(config, data, progress))
