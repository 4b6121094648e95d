import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from srgan.metrics import luma, psnr_y, ssim_y


def images(seed: int = 0, size: tuple[int, int] = (37, 52)) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture and a noisy copy, (1, 3, H, W) in [0, 1], 8 bits."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows * a + columns * b) for a, b in random.uniform(0.05, 0.5, (3, 2))]
    hr = 0.5 + 0.4 * np.stack(waves)
    sr = (hr + random.normal(0, 0.05, hr.shape)).clip(0, 1)
    return tuple(torch.from_numpy(np.rint(255 * x) / 255).float()[None] for x in (sr, hr))


def luma_by_hand(rgb: torch.Tensor) -> np.ndarray:
    """The formula of MATLAB's rgb2ycbcr, on 8-bit values, without rounding."""
    red, green, blue = (255 * rgb[0].double().numpy()).round()
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255


def test_luma_of_black_and_white():
    assert luma(torch.zeros(1, 3, 1, 1)).item() == 16
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_equals_the_formula(border):
    sr, hr = images()
    inside = slice(border, -border or None)
    error = (luma_by_hand(sr) - luma_by_hand(hr))[inside, inside]
    expected = 10 * math.log10(255**2 / np.mean(error**2))
    assert psnr_y(sr, hr, border) == pytest.approx(expected, abs=1e-9)


def test_ssim_equals_scikit_image():
    for seed in range(3):
        sr, hr = images(seed)
        a, b = (luma_by_hand(x)[4:-4, 4:-4] for x in (sr, hr))
        expected = structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert 0.2 < expected < 0.95
        assert ssim_y(sr, hr) == pytest.approx(expected, abs=1e-9)


def test_equal_images_are_perfect():
    _, hr = images()
    assert psnr_y(hr, hr) == math.inf
    assert ssim_y(hr, hr) == pytest.approx(1, abs=1e-12)


def test_values_are_clamped_and_rounded_to_8_bits_first():
    sr, hr = images()
    assert psnr_y(hr + 0.4 / 255, hr) == math.inf
    beyond = torch.where(sr == sr.max(), 7.0, sr)
    assert psnr_y(beyond, hr) == psnr_y(torch.where(sr == sr.max(), 1.0, sr), hr)


def test_what_lies_in_the_border_does_not_count():
    sr, hr = images()
    spoiled = sr.clone()
    spoiled[..., :4] = spoiled[..., -4:, :] = 1 - sr[..., :4].mean()
    assert psnr_y(spoiled, hr) == psnr_y(sr, hr)
    assert ssim_y(spoiled, hr) == ssim_y(sr, hr)
    assert psnr_y(spoiled, hr, border=0) < psnr_y(sr, hr, border=0)


@pytest.mark.parametrize("metric, least", [(psnr_y, 9), (ssim_y, 19)])
def test_too_small_images_are_refused(metric, least):
    image = torch.rand(1, 3, 40, least)
    metric(image, image)
    with pytest.raises(ValueError, match=f"at least {least} pixels"):
        metric(image[..., 1:], image[..., 1:])


@pytest.mark.parametrize("shape", [(1, 3, 30, 31), (2, 3, 30, 30), (1, 1, 30, 30), (3, 30, 30)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        psnr_y(torch.rand(shape), torch.rand(1, 3, 30, 30))
