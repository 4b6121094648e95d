import threading

import pytest
import torch
import torch.nn.functional as F

from srgan import GeneratorConfig, winograd
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


@pytest.mark.parametrize("rows", [(0, 40), (3, 9), (0, 1), (39, 40)])
@pytest.mark.parametrize("columns", [(0, 50), (1, 49), (11, 12)])
@torch.inference_mode()
def test_computes_a_part_of_the_result(rows, columns):
    (weight, bias), x = filters(16, 8), image(1, 8, 40, 50)
    part = slice(*rows), slice(*columns)
    expected = F.conv2d(x, weight, bias, padding=1)[:, :, part[0], part[1]]
    result = WinogradConvolution(weight, bias)(x, part)
    torch.testing.assert_close(result, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("factor, faster", [(0.5, True), (2.0, False)])
def test_is_taken_where_it_is_faster(monkeypatch, factor, faster):
    """By a clock that only these two move."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(winograd.time, "perf_counter", lambda: now)
    monkeypatch.setattr(WinogradConvolution, "__call__", lambda *_: advance(factor))
    monkeypatch.setattr(F, "conv2d", lambda *_, **__: advance(1.0))
    assert winograd.pays.__wrapped__() is (faster and torch.backends.mkl.is_available())


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
