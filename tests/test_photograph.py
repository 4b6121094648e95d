import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data

from srgan.image import to_tensor
from train.photograph import BLUR_REACH, MCU, blur, jpeg, photograph

WHOLE_FILE = torch.zeros(1, 2, dtype=torch.long)


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """(1, 3, 192, 256), RGB in [0, 1]."""
    return to_tensor(Image.fromarray(data.astronaut()[:192, 128:384]))


def coded_by_pillow(photo: torch.Tensor, quality: int, subsampling: int) -> torch.Tensor:
    pixels = photo[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return to_tensor(Image.open(file))


# ----------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("quality", [35, 60, 95])
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("size", [(192, 256), (51, 77)])
def test_jpeg_does_what_pillows_does(photo, quality, subsample, size):
    """But for roundings, which may end one step of a coefficient apart."""
    photo = photo[:, :, : size[0], : size[1]]
    expected = coded_by_pillow(photo, quality, 2 if subsample else 0)
    coded = jpeg(photo, torch.tensor([float(quality)]), torch.tensor([subsample]), WHOLE_FILE)
    assert coded.shape == photo.shape
    lost, apart = (expected - photo).abs().mean(), (coded - expected).abs().mean()
    assert apart < 0.4 * lost
    assert apart < 0.7 / 255


def test_jpeg_of_a_part_has_the_whole_files_blocks(photo):
    settings = torch.tensor([50.0]), torch.tensor([True])
    top, left = 5, 11
    whole = jpeg(photo, *settings, WHOLE_FILE)[:, :, top:, left:]
    part = jpeg(photo[:, :, top:, left:], *settings, torch.tensor([[top, left]]))
    inside = (..., slice(2 * MCU, -2 * MCU), slice(2 * MCU, -2 * MCU))
    assert torch.equal(part[inside], whole[inside])
    elsewhere = jpeg(photo[:, :, top:, left:], *settings, WHOLE_FILE)
    assert (elsewhere[inside] - whole[inside]).abs().mean() > 1 / 255


def test_every_image_has_its_own_quality_and_chroma(photo):
    quality, subsample = torch.tensor([40.0, 40.0, 90.0]), torch.tensor([False, True, True])
    together = jpeg(photo.expand(3, -1, -1, -1), quality, subsample, WHOLE_FILE.expand(3, 2))
    for i in range(3):
        alone = jpeg(photo, quality[i : i + 1], subsample[i : i + 1], WHOLE_FILE)
        assert torch.equal(together[i : i + 1], alone)
    assert len({image.sum().item() for image in together}) == 3


# ----------------------------------------------------------------------------------------- blur


def test_blur_is_the_gaussian_that_was_asked_for():
    """Its second moments are those of a Gaussian turned by 30°."""
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1
    angle = torch.tensor([torch.pi / 6])
    spread = blur(impulse, torch.tensor([2.5]), torch.tensor([1.0]), angle)[0, 0].double()
    steps = torch.arange(41.0).double() - 20
    assert spread.sum().item() == pytest.approx(1, abs=1e-6)
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    across = steps * cosine + steps[:, None] * sine
    along = steps[:, None] * cosine - steps * sine
    assert (spread * across**2).sum().sqrt().item() == pytest.approx(2.5, rel=0.01)
    assert (spread * along**2).sum().sqrt().item() == pytest.approx(1.0, rel=0.01)
    assert spread[:, : 20 - BLUR_REACH].abs().max() < 1e-7


def test_blur_keeps_each_images_channels_apart_and_plain_areas_as_they_are():
    plain = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.4, 0.6]])[:, :, None, None].expand(2, 3, 24, 32)
    blurred = blur(plain, torch.tensor([2.0, 0.3]), torch.tensor([1.0, 0.3]), torch.zeros(2))
    torch.testing.assert_close(blurred, plain)


# ---------------------------------------------------------------------------------- photographs


def test_photograph_depends_on_its_seed_alone(photo):
    seeds = list(range(40, 52))
    together = photograph(photo.expand(len(seeds), -1, -1, -1), seeds)
    assert together.shape == (len(seeds), 3, 48, 64)
    torch.testing.assert_close(255 * together, (255 * together).round(), rtol=0, atol=1e-4)
    assert together.min() >= 0
    assert together.max() <= 1
    for i, seed in enumerate(seeds):
        torch.testing.assert_close(
            photograph(photo, [seed])[0], together[i], rtol=0, atol=1 / 255 + 1e-6
        )
    assert len({image.sum().item() for image in together}) == len(seeds)


def test_photographs_are_degraded_variously_but_keep_place_and_colour(photo):
    clean = F.interpolate(photo, scale_factor=0.25, mode="bicubic", antialias=True)
    taken = photograph(photo.expand(200, -1, -1, -1), range(200))
    errors = (taken - clean).square().mean((1, 2, 3)).sqrt() * 255
    assert errors.quantile(0.05) < 6
    assert errors.quantile(0.95) > 10
    mean = taken.mean(0, keepdim=True)
    assert (mean - clean).mean((0, 2, 3)).abs().max() < 1 / 255
    # Were they shifted by half a pixel, a shifted copy would be closer.
    own = (mean - clean).square().mean()
    for dimension in (2, 3):
        for step in (-1, 1):
            between = (clean + clean.roll(step, dimension)) / 2
            assert (mean - between)[:, :, 1:-1, 1:-1].square().mean() > own
