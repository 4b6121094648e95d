import threading

import pytest
import torch
import torch.nn.functional as F

from srgan import GeneratorConfig, tiling
from srgan.generator import InferenceGenerator, fold
from srgan.winograd import WinogradConvolution, WinogradGenerator


def filters(outputs: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, channels, 3, 3, generator=random) / (3 * channels**0.5)
    return weight, torch.randn(outputs, generator=random)


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "height, width",
    [(1, 1), (3, 5), (4, 4), (6, 6), (17, 66), (64, 64), (70, 70), (67, 131), (1, 300), (300, 1)],
)
@pytest.mark.parametrize("channels, outputs, slope", [(5, 5, 1.0), (5, 20, 0.2), (64, 64, 0.1)])
@torch.inference_mode()
def test_equals_the_convolution(height, width, channels, outputs, slope):
    """To the rounding of float32; the result has a standard deviation of about 1."""
    (weight, bias), x = filters(outputs, channels), image(1, channels, height, width)
    result = WinogradConvolution(weight, bias, slope)(x)
    expected = F.leaky_relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1), slope)
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_takes_several_images_of_any_layout():
    weight, bias = filters(8, 8)
    conv = WinogradConvolution(weight, bias)
    x = image(3, 8, 30, 50)
    for laid_out in (x, x.contiguous(), F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2]):
        torch.testing.assert_close(
            conv(laid_out), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=3e-5
        )


def test_memory_is_not_mixed_up_between_sizes_modes_and_threads():
    weight, bias = filters(8, 8)
    conv = WinogradConvolution(weight, bias)
    images = [image(1, 8, 20 + 13 * i, 90 - 11 * i, seed=i) for i in range(6)]
    expected = [conv(x) for x in images]
    with torch.inference_mode():  # with memory that was taken outside of it
        assert all(torch.equal(conv(x), y) for x, y in zip(images, expected, strict=True))
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(conv(images[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=[i]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("size", [(1, 1), (9, 31), (75, 40)])
@torch.inference_mode()
def test_generator_gives_the_same_picture(make_generator, size):
    state = fold(make_generator(config=GeneratorConfig(channels=8, blocks=2)))
    lr = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    network, expected = WinogradGenerator(state), InferenceGenerator(state)
    torch.testing.assert_close(network(lr), expected(lr), rtol=0, atol=1e-5)
    assert network.body_work == expected.body_work
    assert network.tail_work == expected.tail_work


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 29])
@torch.inference_mode()
def test_bands_give_the_same_picture(make_generator, monkeypatch, height):
    state = fold(make_generator(config=GeneratorConfig(channels=8, blocks=3)))
    lr = torch.rand(1, 3, height, 21, generator=torch.Generator().manual_seed(0))
    network, expected = WinogradGenerator(state), InferenceGenerator(state)(lr)
    monkeypatch.setattr(tiling, "BAND", 3 * 21)
    assert len(tiling.bands(lr)) == max(1, min(height // 2, -(-height // 3)))
    torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-5)
