"""Teachers of family `beats`: the audio transformer BEATs (Chen et al. 2023), with the weights of its authors.

The spectrogram is cut into square patches, which are projected, normalised and put in a row: first all patches of the
first frames, from low to high frequency. A grouped convolution along this row adds positions. In the attention, a
learnt bias for the distance of two patches is scaled by a gate that is computed from the query. Residuals are weighted
as in DeepNet (Wang et al. 2022): norm(a * x + layer(x)), a = (2 * number of layers)^(1/4). The embedding is the mean of
the outputs for all patches.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ascmodels.checkpoint import CheckpointError, load_tensors
from ascmodels.teachers.base import RebuiltTeacher, TeacherModelConfig
from ascmodels.teachers.timm import patch_grid

PATCH_EMBEDDING = 512  # size of a patch's projection, before it is mapped to the size of the transformer
BUCKETS, FARTHEST = 320, 800  # numbers of learnt distances (both directions); larger distances share the last one
CONV_POSITIONS, CONV_GROUPS = 128, 16  # kernel and groups of the convolution that adds positions
PUBLISHED = {  # what the configuration in a published file must have, to be the architecture of this module
    **{"input_patch_size": 16, "embed_dim": PATCH_EMBEDDING, "conv_bias": False, "activation_fn": "gelu"},
    **{"layer_norm_first": False, "deep_norm": True, "conv_pos": CONV_POSITIONS, "conv_pos_groups": CONV_GROUPS},
    **{"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": BUCKETS, "max_distance": FARTHEST},
}
_LAYER = {  # names in a published file, below encoder.layers.<i> -> names below layers.<i>
    **{f"self_attn.{n}_proj": f"attention.{n}" for n in ("q", "k", "v", "out")},
    **{"self_attn.grep_linear": "attention.gate"},
    **{"self_attn_layer_norm": "attention_norm", "fc1": "rise", "fc2": "fall", "final_layer_norm": "norm"},
}


class Attention(nn.Module):
    """Self-attention whose bias for the distance of two patches is scaled by a gate for each head and query."""

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.gate = nn.Linear(size // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`x` is [B, N, D], `bias` [heads, N, N] (query, key); return [B, N, D]."""
        b, n, d = x.shape
        q, k, v = (part(x).view(b, n, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        update, reset = self.gate(q).view(b, self.heads, n, 2, 4).sum(-1).sigmoid().split(1, dim=-1)
        mask = (update * (reset * self.gate_scale - 1) + 2) * bias
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype), dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Layer(nn.Module):
    def __init__(self, size: int, heads: int, weight: float, dropout: float):
        super().__init__()
        self.weight = weight  # of the residual
        self.attention, self.attention_norm = Attention(size, heads, dropout), nn.LayerNorm(size)
        self.rise, self.fall, self.norm = nn.Linear(size, 4 * size), nn.Linear(4 * size, size), nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.attention_norm(self.weight * x + self.dropout(self.attention(x, bias)))
        return self.norm(self.weight * x + self.dropout(self.fall(F.gelu(self.rise(x)))))


class Network(nn.Module):
    """BEATs with a linear classifier on the mean of the outputs for all patches."""

    def __init__(self, config: TeacherModelConfig, n_classes: int):
        super().__init__()
        size, heads = config.hidden_size, config.heads
        self.patches = nn.Conv2d(1, PATCH_EMBEDDING, config.patch_size, config.stride, bias=False)
        self.patch_norm = nn.LayerNorm(PATCH_EMBEDDING)
        self.projection = nn.Linear(PATCH_EMBEDDING, size)
        self.positions = nn.Conv1d(size, size, CONV_POSITIONS, padding=CONV_POSITIONS // 2, groups=CONV_GROUPS)
        self.norm = nn.LayerNorm(size)
        self.distances = nn.Embedding(BUCKETS, heads)
        weight = (2 * config.layers) ** 0.25
        self.layers = nn.ModuleList(Layer(size, heads, weight, config.dropout) for _ in range(config.layers))
        self.classifier = nn.Linear(size, n_classes)
        deep_norm_init(self)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding [B, D] of log-mel features `x` [B, 1, F, T]."""
        x = self.patches(x.transpose(2, 3)).flatten(2).transpose(1, 2)  # [B, N, 512], the frequency changes fastest
        x = self.projection(self.patch_norm(x))
        n = x.shape[1]
        x = self.norm(x + F.gelu(self.positions(x.transpose(1, 2))[..., :n]).transpose(1, 2))
        places = torch.arange(n, device=x.device)
        bias = self.distances(buckets(places - places[:, None])).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x, bias)
        return x.mean(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def buckets(distances: torch.Tensor) -> torch.Tensor:
    """Return the index of the learnt bias for each of the integer `distances`, 0 to BUCKETS - 1.

    Each sign has half of the indices. Half of these are for one distance each, the others for distances on a
    logarithmic scale up to FARTHEST, as in T5 (Raffel et al. 2020).
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    size = distances.abs()
    scale = (half - exact) / math.log(FARTHEST / exact)
    far = exact + (torch.log(size.clamp(min=1) / exact) * scale).long()
    return half * (distances > 0) + torch.where(size < exact, size, far.clamp(max=half - 1))


def deep_norm_init(network: Network) -> None:
    """Draw initial weights as in DeepNet: Xavier, values and feed-forward layers scaled by (8 * layers)^(-1/4)."""
    gain = (8 * len(network.layers)) ** -0.25
    for layer in network.layers:
        assert isinstance(layer, Layer)
        for part in (layer.attention.q, layer.attention.k):
            nn.init.xavier_normal_(part.weight)
        for part in (layer.attention.v, layer.attention.out, layer.rise, layer.fall):
            nn.init.xavier_normal_(part.weight, gain)


class BEATs(RebuiltTeacher):
    """Teacher of family beats. `config.pretrained` is a published file, such as BEATs_iter3_plus_AS2M.pt."""

    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int):
        weights = None
        if config.pretrained:
            config, weights = published(Path(config.pretrained).expanduser(), config)
        patch_grid(n_mels, frames, config.patch_size, config.stride)  # raises if no patch fits
        super().__init__(config, n_classes, n_mels, frames)
        self.network = Network(config, n_classes)
        self.embedding_size = config.hidden_size
        if weights:
            load_all_but_classifier(self.network, weights, str(config.pretrained))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.features(x)

    def depths(self) -> dict[str, int]:
        n_layers = len(self.network.layers)

        def depth(name: str) -> int:
            if layer := re.search(r"\.layers\.(\d+)\.", name):
                return 1 + int(layer[1])
            return n_layers + 1 if ".classifier." in name else 0

        return {name: depth(name) for name, _ in self.named_parameters()}


def published(path: Path, config: TeacherModelConfig) -> tuple[TeacherModelConfig, dict[str, torch.Tensor]]:
    """Return `config` with the sizes of the published BEATs file at `path`, and its weights under the names of Network.

    Raise CheckpointError if it is not such a file.
    """
    expected = "expected a file that the authors of BEATs publish, such as BEATs_iter3_plus_AS2M.pt"
    if not path.is_file():
        raise CheckpointError(
            f"teacher.model.pretrained={str(path)!r} does not exist; {expected}: download it from "
            "https://github.com/microsoft/unilm/tree/master/beats, and give its path"
        )
    stored = load_tensors(path)
    cfg, weights = stored.get("cfg"), stored.get("model")
    if not isinstance(cfg, dict) or not isinstance(weights, dict):
        raise CheckpointError(
            f"teacher.model.pretrained={str(path)!r} has the keys {sorted(map(str, stored))[:5]}; {expected}, whose "
            "keys are cfg and model: use another file, or another teacher.model.family"
        )
    sizes = {key: cfg.get(f"encoder_{key}") for key in ("embed_dim", "layers", "attention_heads", "ffn_embed_dim")}
    size, layers, heads, _ = (value if type(value) is int and value > 0 else 0 for value in sizes.values())
    needed = PUBLISHED | {"encoder_ffn_embed_dim": 4 * size}
    if wrong := next((key for key in needed if cfg.get(key) != needed[key]), None):
        raise CheckpointError(
            f"teacher.model.pretrained={str(path)!r} has {wrong}={cfg.get(wrong)!r:.60} in its configuration; "
            f"{expected}, which has {needed[wrong]}: use another file"
        )
    there = sum(tensor.numel() for tensor in weights.values() if isinstance(tensor, torch.Tensor))
    if (least := 12 * layers * size**2) > there:
        raise CheckpointError(
            f"teacher.model.pretrained={str(path)!r} describes {layers} layers of size {size}, so at least {least:,} "
            f"weights, but it has {there:,}; {expected}: use another file"
        )
    if not layers or not heads or size % heads or size % CONV_GROUPS:
        raise CheckpointError(
            f"teacher.model.pretrained={str(path)!r} has encoder_embed_dim={size}, encoder_layers={layers}, "
            f"encoder_attention_heads={heads}; {expected}, which has a size that is a multiple of the number of heads "
            f"and of {CONV_GROUPS}: use another file"
        )
    found = replace(config, hidden_size=size, layers=layers, heads=heads, patch_size=PUBLISHED["input_patch_size"])
    return found, renamed(weights)


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a published file under the names of Network; those it does not need are left out."""
    found: dict[str, torch.Tensor] = {}
    outer = {
        **{"patch_embedding": "patches", "layer_norm": "patch_norm", "post_extract_proj": "projection"},
        **{"encoder.layer_norm": "norm", "encoder.pos_conv.0": "positions"},
        "encoder.layers.0.self_attn.relative_attention_bias": "distances",  # the other layers have copies of it
    }
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", module)
        if module in outer:
            found[f"{outer[module]}.{kind}"] = tensor
        elif layer and layer[2] in _LAYER:
            found[f"layers.{layer[1]}.{_LAYER[layer[2]]}.{kind}"] = tensor
        elif layer and layer[2] == "self_attn" and kind == "grep_a":
            found[f"layers.{layer[1]}.attention.gate_scale"] = tensor
    size, direction = found.pop("positions.weight_g", None), found.pop("positions.weight_v", None)
    if size is not None and direction is not None:  # weight normalisation over all but the last dimension
        found["positions.weight"] = size * direction / direction.norm(dim=(0, 1), keepdim=True)
    return found


def load_all_but_classifier(network: Network, weights: dict[str, torch.Tensor], source: str) -> None:
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.")}
    for name, tensor in own.items():
        shape = tuple(weights[name].shape) if name in weights else "missing"
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"teacher.model.pretrained={source!r}: the weights of {name} are {shape}; expected the shape "
                f"{tuple(tensor.shape)}: the file is damaged or not one of BEATs, use another one"
            )
    network.load_state_dict({name: weights[name] for name in own}, strict=False)
