import pytest
import torch
import torch.nn.functional as F

from srgan.generator import GeneratorConfig, InferenceGenerator, bands, fold
from srgan.int8 import (
    LIMIT,
    TOP,
    Int8Generator,
    Ranges,
    _add_convolution,
    _convolve,
    _equalize,
    _grid,
    _pack,
    available,
    calibrate,
)
from srgan.metrics import psnr_y
from srgan.upscaler import LEAST_LIKENESS, _calibration_images
from srgan.weights import load_weights


@pytest.fixture(scope="module")
def bundled() -> dict[str, torch.Tensor]:
    return fold(load_weights("bundled").srgan)


@pytest.fixture(scope="module")
def calibration(bundled) -> tuple[Ranges, float]:
    return calibrate([bundled], _calibration_images())


def integers(*shape: int, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("zero", [0, 37])
def test_convolutions_are_exact(kernel, zero):
    q = integers(1, 16, 9, 7, low=0, high=200)
    weight = integers(8, 16, kernel, kernel, low=-40, high=40).float()
    weight[:, 0, 0, 0] = 127  # so that every output's scale is 1
    bias = torch.arange(8.0)
    expected = F.conv2d(q.float() - zero, weight, bias, padding=kernel // 2)
    conv = _pack(weight, bias, zero, [kernel // 2] * 2)
    x = torch.randn(1, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    total = x.clone()
    _add_convolution(total, q.to(torch.uint8), conv)
    torch.testing.assert_close(total, x + expected, rtol=1e-6, atol=1e-2)
    result = _convolve(q.to(torch.uint8), conv, torch.float32)
    assert expected.abs().max() > LIMIT
    torch.testing.assert_close(result, expected.clamp(-LIMIT, LIMIT), rtol=1e-6, atol=1e-2)


def test_grid_holds_its_ends_and_zero():
    for low, high in ((-0.3, 2.0), (0.0, 1.0), (-4.0, 0.0), (0.0, 0.0)):
        scale, zero = _grid(low, high)
        assert 0 <= zero <= TOP
        for value in (low, high):
            q = min(max(round(value / scale) + zero, 0), TOP)
            assert abs(scale * (q - zero) - value) <= scale


def test_equalized_network_is_the_same_with_channels_more_alike(make_generator):
    state, image = fold(make_generator(seed=4)), torch.rand(1, 3, 12, 12)
    ranges, _ = calibrate([state], [image])
    with torch.inference_mode():
        expected = InferenceGenerator(state)(image)
        for first, second in (("upsample1", "upsample2"), ("upsample2", "head")):
            before = ranges[second][1]
            state, ranges = _equalize(state, ranges, first, second)
            sr = InferenceGenerator(state)(image)
            torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-5)
            after = ranges[second][1]
            assert after.amax() == before.amax()
            assert (after >= before).all() and after.median() > before.median()
        measured, _ = calibrate([state], [image])
    for name, (low, high) in measured.items():
        torch.testing.assert_close((low, high), ranges[name], rtol=1e-3, atol=1e-5)


def test_bundled_weights_lose_next_to_nothing(bundled, calibration):
    assert LEAST_LIKENESS < calibration[1] < 80  # and it isn't float32 in disguise


def test_pictures_that_were_not_calibrated(bundled):
    images = _calibration_images()
    ranges, _ = calibrate([bundled], images[2:])
    with torch.inference_mode():
        sr, expected = (
            Int8Generator(bundled, ranges)(images[0]),
            InferenceGenerator(bundled)(images[0]),
        )
    assert psnr_y(sr, expected) > LEAST_LIKENESS


@pytest.mark.parametrize("slope", [-0.25, 0.0, 0.1, 1.5])
def test_any_slope(make_generator, slope):
    state = fold(make_generator(seed=4))
    for name in state:
        if name.endswith("slope"):
            state[name] = torch.tensor(slope)
    image = F.interpolate(torch.rand(1, 3, 5, 5), (20, 20), mode="bicubic").clamp(0, 1)
    _, likeness = calibrate([state], [image])
    assert likeness > 35


def test_networks_of_few_channels(make_generator):
    state = fold(make_generator(seed=4, config=GeneratorConfig(channels=3, blocks=1)))
    assert calibrate([state], [torch.rand(1, 3, 12, 12)])[1] > 35


def test_what_exceeds_the_ranges_is_clamped_and_never_wraps(make_generator):
    state = fold(make_generator(seed=4))
    grey = 0.5 + 0.02 * torch.rand(1, 3, 20, 20)
    ranges, _ = calibrate([state], [grey])
    image = F.interpolate(torch.rand(1, 3, 3, 3), (20, 20), mode="bilinear")
    with torch.inference_mode():
        sr, expected = Int8Generator(state, ranges)(image), InferenceGenerator(state)(image)
    # Clamped, the picture is flat; what wraps lands at the other end of the range.
    span = expected.amax() - expected.amin()
    assert sr.amin() > expected.amin() - 0.2 * span
    assert sr.amax() < expected.amax() + 0.2 * span


def test_activations_are_rounded_and_stay_within_the_grid(bundled, calibration):
    network = Int8Generator(bundled, calibration[0])
    for name, follower in network._follower.items():
        y = torch.linspace(-LIMIT, LIMIT, 8 * 33 * 32).bfloat16().view(1, 8, 33, 32)
        y[0, 0] /= 100
        y = y.contiguous(memory_format=torch.channels_last)
        expected = F.leaky_relu(y, network.slopes[name])
        q = network._activate(name, y)
        assert torch.equal(y, expected)  # as the head's float inputs are
        rounded = (expected.float().round() + network._grids[follower].zero).clamp(0, TOP)
        assert torch.equal(q, rounded.to(torch.uint8))


def test_parts_of_a_picture_are_as_the_whole(bundled, calibration):
    network = Int8Generator(bundled, calibration[0])
    lr = _calibration_images()[1]
    halo = network.body_halo + network.tail_halo
    with torch.inference_mode():
        whole = network(lr)
        part = network(lr[:, :, :, : 40 + halo])[:, :, :, : 4 * 40]
    assert (whole[:, :, :, : 4 * 40] - part).abs().max() < 1 / 255


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 29])
@torch.inference_mode()
def test_bands_give_the_same_picture(bundled, calibration, monkeypatch, height):
    network = Int8Generator(bundled, calibration[0])
    lr = _calibration_images()[1][:, :, :height, :21]
    expected = network(lr)
    monkeypatch.setattr("srgan.generator.BAND", 3 * 21)
    assert len(bands(lr)) == max(1, min(height // 2, -(-height // 3)))
    torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-4)
    assert F.mse_loss(expected, InferenceGenerator(bundled)(lr)) < 1e-4


def test_progress_is_told_block_by_block(make_generator):
    state, ticks = fold(make_generator()), []
    network = Int8Generator(state, calibrate([state], [torch.rand(1, 3, 12, 12)])[0])
    network.body(torch.rand(1, 3, 6, 6), tick=lambda: ticks.append(1))
    assert len(ticks) == network.depth


def test_not_available_without_vnni(monkeypatch):
    available.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not available()
    available.cache_clear()


def test_not_available_where_products_overflow(monkeypatch):
    available.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr("srgan.int8._convolve", lambda q, *_: torch.full((1, 16, 4, 4), 32767.0))
    assert not available()
    available.cache_clear()
