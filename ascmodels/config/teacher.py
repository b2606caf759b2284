"""Configuration of the network of a teacher: `TeacherModelConfig`."""

from dataclasses import dataclass

MAX_WEIGHTS = 2**28  # of a transformer without pretrained weights: 1 GB
FAMILIES = ("ast", "beats", "vit", "cnn")


@dataclass(frozen=True)
class TeacherModelConfig:
    """Configuration of a teacher's network.

    If `pretrained` or `name` is set, it determines the architecture, and `hidden_size`, `layers`, `heads` and
    `patch_size` are not used.
    """

    family: str = "ast"  # teacher family: ast, beats, vit or cnn
    name: str = ""  # timm network (vit, cnn); empty: that of pretrained, or a vit of hidden_size, layers, heads
    pretrained: str | None = None  # weights: Hugging Face repo, folder or file (beats: file); null: random
    hidden_size: int = 128  # embedding size of a transformer without pretrained weights; a multiple of heads
    layers: int = 4  # number of transformer layers without pretrained weights (at least 1)
    heads: int = 4  # number of attention heads per layer without pretrained weights (at least 1)
    patch_size: int = 8  # side of a square patch in mel bins and frames (at least 1; 16 in the paper of AST)
    stride: int = 8  # distance of patches in mel bins and frames, also for a named vit (at least 1)
    dropout: float = 0.0  # dropout probability in training (from 0 to below 1)
    patchout_freq: int = 0  # patch rows (frequency) dropped from each training batch (vit only; 0: none)
    patchout_time: int = 0  # patch columns (time) dropped from each training batch (vit only; 0: none)

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"teacher.model.family={self.family!r}: expected one of {', '.join(FAMILIES)}")
        for name in ("hidden_size", "layers", "heads", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.model.{name}={getattr(self, name)}: expected an integer >= 1")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"teacher.model.hidden_size={self.hidden_size} is not a multiple of heads={self.heads}: expected a "
                "multiple; change teacher.model.hidden_size or teacher.model.heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"teacher.model.dropout={self.dropout}: expected a probability in [0, 1)")
        if self.patchout_freq < 0 or self.patchout_time < 0:
            raise ValueError(
                f"teacher.model.patchout_freq={self.patchout_freq}, patchout_time={self.patchout_time}: "
                "expected integers >= 0"
            )
        if self.family == "beats" and self.hidden_size % 16:
            raise ValueError(
                f"teacher.model.hidden_size={self.hidden_size}: expected a multiple of 16, because "
                "teacher.model.family=beats has a convolution of 16 groups; change it"
            )
        n_weights = 12 * self.layers * self.hidden_size**2
        if self.family != "cnn" and not (self.name or self.pretrained) and n_weights > MAX_WEIGHTS:
            raise ValueError(
                f"teacher.model.hidden_size={self.hidden_size}, teacher.model.layers={self.layers}: about "
                f"{n_weights:,} weights; expected at most {MAX_WEIGHTS:,}: lower these keys"
            )
        if self.family == "cnn" and (self.patchout_freq or self.patchout_time):
            raise ValueError(
                f"teacher.model.patchout_freq={self.patchout_freq}, teacher.model.patchout_time={self.patchout_time}: "
                "expected 0 and 0, because teacher.model.family=cnn has no patches; remove them, or set the family to "
                "vit"
            )
        if self.family in ("ast", "beats") and (self.name or self.patchout_freq or self.patchout_time):
            raise ValueError(
                f"teacher.model.name={self.name!r}, patchout_freq={self.patchout_freq}, "
                f"patchout_time={self.patchout_time}: expected the defaults '', 0 and 0, because "
                f"teacher.model.family={self.family} does not use these keys; remove them, or set the family to vit or "
                "cnn"
            )
        if self.family == "cnn" and not (self.name or self.pretrained):
            raise ValueError(
                "teacher.model.name='', teacher.model.pretrained=None: expected that one of them is set, because "
                "teacher.model.family is cnn; set teacher.model.name to an architecture of timm, e.g. resnet18"
            )
