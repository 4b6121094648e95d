"""The discriminator of SRGAN: tells originals from enlarged images while training.

Ledig et al. 2017, §2.1.1 and figure 4.
"""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

#: (output channels, stride) of the eight 3×3 convolutions.
LAYERS = ((64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2))


class Discriminator(nn.Module):
    """Eight 3×3 convolutions, four of stride 2, with LeakyReLU 0.2, and two dense layers.

    Args:
        crop: side of the images in pixels, a multiple of 16: the first dense layer has a weight for
            each place.
        normalization: `batch`, BN behind all convolutions but the first, as in the paper;
            `spectral`, each layer divided by its largest singular value (Miyato et al. 2018), which
            leaves an image's logit independent of the rest of its batch; or `none`.
        width: channels relative to the paper's.

    Raises:
        ValueError: `crop` is not a multiple of 16.
    """

    def __init__(self, crop: int = 96, *, normalization: str = "batch", width: float = 1.0):
        super().__init__()
        if crop < 16 or crop % 16:
            raise ValueError(f"the discriminator needs crops of a multiple of 16, got {crop}")

        def limit(layer: nn.Module) -> nn.Module:
            return spectral_norm(layer) if normalization == "spectral" else layer

        layers: list[nn.Module] = []
        before = 3
        for i, (paper_channels, stride) in enumerate(LAYERS):
            channels = max(1, round(width * paper_channels))
            layers.append(limit(nn.Conv2d(before, channels, 3, stride, padding=1)))
            if i > 0 and normalization == "batch":
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.LeakyReLU(0.2))
            before = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            limit(nn.Linear(before * (crop // 16) ** 2, round(1024 * width))),
            nn.LeakyReLU(0.2),
            limit(nn.Linear(round(1024 * width), 1)),
        )

    def forward(self, rgb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judges.

        Args:
            rgb: (N, 3, crop, crop) in [0, 1].

        Returns:
            Logits (N,), large for originals (the paper's sigmoid is part of the loss), and the
            activations behind each convolution, for feature matching.
        """
        x = 2 * rgb - 1
        activations = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                activations.append(x)
        return self.classifier(x)[:, 0], activations
