import numpy as np
import pytest
import torch
from PIL import Image

from srgan.back_projection import back_project
from srgan.generator import SCALE
from srgan.metrics import psnr_y


def resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """By Pillow, in float32."""
    planes = [Image.fromarray(plane.numpy()) for plane in x[0]]
    planes = [plane.resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return torch.stack([torch.from_numpy(np.array(plane)) for plane in planes])[None]


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A low-res image and an enlargement that has nothing to do with it."""
    random = torch.Generator().manual_seed(0)
    return tuple(torch.rand(1, 3, f * height, f * width, generator=random) for f in (1, SCALE))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 9), (40, 33), (90, 1), (1, 90), (90, 2)])
@pytest.mark.parametrize("band", [1, 30, 2**16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adds_what_is_lacking(monkeypatch, size, band, layout):
    """Whatever the bands and the layout."""
    monkeypatch.setattr("srgan.generator.BAND", band)
    lr, sr = pair(*size)
    height, width = size
    lacking = lr - resize(sr, height, width)
    expected = sr + resize(lacking, SCALE * height, SCALE * width)
    before = lr.clone()
    lr = lr.contiguous(memory_format=layout)
    assert back_project(sr, lr) is None
    torch.testing.assert_close(sr, expected, rtol=0, atol=1e-5)
    assert torch.equal(lr, before)


def test_reduced_again_it_is_nearer_to_the_low_res_image():
    lr, sr = pair(40, 33)
    before = (resize(sr, 40, 33) - lr).square().mean()
    back_project(sr, lr)
    after = (resize(sr, 40, 33) - lr).square().mean()
    assert after < 0.2 * before


def test_a_cast_goes_and_detail_stays():
    _, hr = pair(30, 30)
    hr[:, :, 40:80] *= 0.1  # an edge
    lr = resize(hr, 30, 30)
    cast = hr + torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)
    mended = cast.clone()
    back_project(mended, lr)
    assert psnr_y(mended, hr) > psnr_y(cast, hr) + 15
