"""Online distillation (distill.mode=online): the teachers predict each batch with the student's augmentation.

    online = load_online(config, data)                         # load the teachers of distill.teacher_ckpts once
    predict = online.batch_teacher(augment, device, amp="off", with_features=False)
    output = predict(picked, draws, mix)                       # TeacherOutput: logits [B, C], features [B, D]

Every teacher reads its clips from the waveform cache at its own sample rate, so that nothing is resampled twice. The
random draws of the student's clips are applied to the teacher's clips: the same impulse response, the same roll, the
same mixup of log-mels. So without augmentation the logits equal the cached ones of offline distillation, up to float16
rounding.
Freq-MixStyle and masks are applied to the student only: they change its mel bins, and a teacher predicts the complete
clip.
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
from trainables.engine.loop import BatchTeacher, TeacherOutput
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
    """The ensemble of teachers, on the CPU until a trial uses it."""

    members: tuple[Member, ...]
    method: str  # distill.ensemble
    weights: tuple[float, ...]

    def batch_teacher(
        self, augment: AugmentConfig, device: torch.device, amp: str = "off", with_features: bool = False
    ) -> BatchTeacher:
        """Return a function that computes the teachers' output for one batch (for `Epoch.teachers`)."""
        front_ends = [LogMel(m.front_end).to(device) for m in self.members]
        impulses = [impulses_for(augment, m.front_end.sample_rate, device) for m in self.members]
        for member in self.members:
            member.teacher.to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def predict(picked: np.ndarray, draws: Draws, mix: Mix | None) -> TeacherOutput:
            logits, features = [], None
            for member, front_end, responses in zip(self.members, front_ends, impulses, strict=True):
                waveforms = member.clips.cache.batch(member.clips.rows[picked], device)  # [B, S]
                x = front_end(augment_waveforms(waveforms, draws, member.front_end.sample_rate, responses))
                x = (mix(x) if mix else x).to(memory_format=torch.channels_last)  # [B, 1, F, T]
                with torch.autocast(device.type, AMP[amp], enabled=amp != "off"):
                    logits.append(member.teacher(x).float())
                    features = member.teacher.features(x).float() if with_features else None
            return TeacherOutput(combine(logits, self.method, self.weights), features)

        return predict


def load_online(config: TrialConfig, data: SplitClips, progress: bool = False) -> OnlineTeachers:
    """Load the teachers of `distill.teacher_ckpts` for the training clips of `data`.

    Raise CheckpointError for a logits file instead of a teacher's folder, a damaged teacher, or other classes than the
    task's.
    """
    members = []
    for source in map(Path, config.distill.teacher_ckpts):
        if source.is_file():
            raise CheckpointError(
                f"{source} is a file; distill.mode=online needs the folder of a teacher: give one, or set "
                "distill.mode=offline"
            )
        teacher, extra = load_teacher(source, tau.SCENES)
        front_end = FrontEndConfig(**extra["frontend"])
        cache = load_clips(config, front_end.sample_rate, progress, data.train.cache.content).train.cache
        clips = Clips(cache, cache.rows(filenames(data.train)), data.train.labels, data.train.devices)
        members.append(Member(teacher, front_end, clips))
    return OnlineTeachers(tuple(members), config.distill.ensemble, ensemble_weights(config, data, progress))
