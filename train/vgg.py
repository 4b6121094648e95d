"""VGG19 as a fixed measure of likeness: the features behind the perceptual loss and distance.

Simonyan & Zisserman 2014, trained on ImageNet. Two sets of weights are in use, of one architecture
but of different feature scale, and losses weighted for one don't fit the other:

- the original Caffe release, for whose φ5,4 Ledig et al. 2017 chose the factor 1/12.75: a
  .safetensors file (`--vgg PATH`) with torchvision's names, and with the conversion of the input
  folded into the first convolution, which here is given what torchvision's is; the release's own
  takes BGR in [0, 255] less a mean;
- torchvision's own training (`--vgg torchvision`, downloaded once).
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

TORCHVISION = "torchvision"
#: Position in torchvision's `vgg19().features` of the ReLU after each convolution used here.
LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_4": 17, "relu4_4": 26, "relu5_4": 35}


class VGGError(Exception):
    """The VGG19 weights can't be had; the text says why and what to do."""


def identify(weights: str | Path) -> str:
    """By what to tell weights apart: `torchvision`, or the file's sha256 in hexadecimal."""
    if str(weights) == TORCHVISION:
        return TORCHVISION
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


class VGG19(nn.Module):
    """The convolutional part of VGG19, fixed.

    Args:
        weights: a .safetensors file with torchvision's names (`features.0.weight` …), or
            `torchvision` for torchvision's download.

    Raises:
        VGGError: the weights can't be read or downloaded.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        # Imported here: torchvision takes a second, and evaluation can do without it.
        from torchvision.models import VGG19_Weights, vgg19

        if str(weights) == TORCHVISION:
            try:
                self.features = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features
            except OSError as exc:
                raise VGGError(
                    f"torchvision's VGG19 can't be downloaded ({exc}): give a file with --vgg"
                ) from exc
        else:
            self.features = vgg19(weights=None).features
            try:
                state = load_file(weights)
            except (OSError, SafetensorError) as exc:
                raise VGGError(f"{weights} is not a readable safetensors file: {exc}") from exc
            state = {
                name.removeprefix("features."): value.float()
                for name, value in state.items()
                if name.startswith("features.")
            }
            try:
                self.features.load_state_dict(state)
            except RuntimeError as exc:
                raise VGGError(f"{weights} doesn't hold the features of a VGG19: {exc}") from exc
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, rgb: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
        """Features after the named activations, in their order in the network.

        Args:
            rgb: (N, 3, H, W) in [0, 1].
            layers: of `LAYERS`.

        Returns:
            For each layer (N, C, H / 2^k, W / 2^k).
        """
        wanted = {LAYERS[name] for name in layers}
        x = (rgb - self.mean) / self.std
        features = []
        for position, layer in enumerate(self.features[: max(wanted) + 1]):
            x = layer(x)
            if position in wanted:
                features.append(x)
        return features
