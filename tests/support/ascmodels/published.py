"""Files with random weights in the layouts in which BEATs and PaSST are published, of small sizes."""

import zlib
from pathlib import Path
from typing import Any

import torch

BEATS_CFG: dict[str, Any] = {
    **{"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4},
    **{"input_patch_size": 16, "embed_dim": 512, "conv_bias": False, "activation_fn": "gelu", "dropout": 0.1},
    **{"layer_norm_first": False, "deep_norm": True, "conv_pos": 128, "conv_pos_groups": 16, "layer_wise": 1.0},
    **{"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 320, "max_distance": 800},
}


def beats_shapes() -> dict[str, tuple[int, ...]]:
    d, heads, inner = 32, 4, 128
    norms = {"layer_norm": 512, "encoder.layer_norm": d}
    linear = {"post_extract_proj": (d, 512)}
    shapes: dict[str, tuple[int, ...]] = {
        **{"patch_embedding.weight": (512, 1, 16, 16), "encoder.pos_conv.0.bias": (d,)},
        **{"encoder.pos_conv.0.weight_g": (1, 1, 128), "encoder.pos_conv.0.weight_v": (d, d // 16, 128)},
    }
    for i in range(BEATS_CFG["encoder_layers"]):
        layer = f"encoder.layers.{i}"
        shapes[f"{layer}.self_attn.grep_a"] = (1, heads, 1, 1)
        shapes[f"{layer}.self_attn.relative_attention_bias.weight"] = (320, heads)
        linear |= {f"{layer}.self_attn.{n}_proj": (d, d) for n in ("k", "v", "q", "out")}
        linear |= {f"{layer}.self_attn.grep_linear": (8, d // heads), f"{layer}.fc1": (inner, d)}
        linear |= {f"{layer}.fc2": (d, inner)}
        norms |= {f"{layer}.self_attn_layer_norm": d, f"{layer}.final_layer_norm": d}
    for name, size in norms.items():
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def passt_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of a PaSST whose transformer has the size of timm's deit_tiny_distilled_patch16_224."""
    d = 192
    shapes: dict[str, tuple[int, ...]] = {
        **{"cls_token": (1, 1, d), "dist_token": (1, 1, d), "new_pos_embed": (1, 2, d)},
        **{"freq_new_pos_embed": (1, d, 12, 1), "time_new_pos_embed": (1, d, 1, 99)},
        **{"patch_embed.proj.weight": (d, 1, 16, 16), "patch_embed.proj.bias": (d,)},
    }
    linear = {"head.1": (527, d), "head_dist": (527, d)}
    norms = ["norm", "head.0"]
    for i in range(12):
        linear |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        linear |= {f"blocks.{i}.mlp.fc1": (4 * d, d), f"blocks.{i}.mlp.fc2": (d, 4 * d)}
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return random weights; a tensor's values depend on its name, and not on the others."""
    found = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        scale = 0.5 if "bias" in name or "embed" in name or len(shape) == 1 else 1.5 * shape[-1] ** -0.5
        found[name] = scale * torch.randn(shape, generator=generator)
        if name.endswith("norm.weight") or name.endswith(("norm1.weight", "norm2.weight", "grep_a", "weight_g")):
            found[name] = 1 + 0.2 * found[name]
    return found


def write_beats(path: Path, **changes: Any) -> Path:
    model = weights(beats_shapes())
    bias = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    model[bias.format(1)] = model[bias.format(0)]  # the layers share it
    torch.save({"cfg": BEATS_CFG | changes, "model": model}, path)
    return path


def write_passt(path: Path) -> Path:
    torch.save(weights(passt_shapes()), path)
    return path
