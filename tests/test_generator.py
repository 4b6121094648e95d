import pytest
import torch
import torch.nn.functional as F

from srgan.generator import (
    SCALE,
    Generator,
    GeneratorConfig,
    InferenceGenerator,
    PReLU,
    bands,
    convolve_normalized,
    fold,
    reindex_head,
)
from srgan.winograd import WinogradGenerator


def test_default_size_is_the_papers():
    generator = Generator()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 1_549_462


@pytest.mark.parametrize(
    "config, size",
    [(GeneratorConfig(), (9, 14)), (GeneratorConfig(channels=8, blocks=2), (33, 21))],
    ids=["paper", "tiny"],
)
def test_inference_form_equals_the_paper_form(make_generator, config, size):
    generator = make_generator(seed=3, config=config)
    lr = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected = generator(lr)
        sr = InferenceGenerator(fold(generator))(lr)
    assert expected.std() > 0.05  # not a comparison of nothing with nothing
    assert sr.shape == (2, 3, SCALE * size[0], SCALE * size[1])
    torch.testing.assert_close(sr, expected, rtol=0, atol=1e-5)


def test_memory_format_changes_no_number(make_generator):
    state, lr = fold(make_generator(seed=3)), torch.rand(1, 3, 9, 14)
    with torch.inference_mode():
        planar = InferenceGenerator(state, torch.contiguous_format)
        assert planar.body(lr).is_contiguous()
        torch.testing.assert_close(planar(lr), InferenceGenerator(state)(lr), rtol=0, atol=1e-5)


def test_half_precision_is_within_a_step_of_8_bits(make_generator):
    state = fold(make_generator(seed=3, config=GeneratorConfig(channels=16, blocks=4)))
    lr = torch.rand(1, 3, 24, 20)
    with torch.inference_mode():
        expected = InferenceGenerator(state)(lr)
        sr = InferenceGenerator(state).to(torch.float16)(lr)
    assert sr.dtype == torch.float16
    assert 0 < (sr.float() - expected).abs().max() < 1 / 255


def test_inference_leaves_its_input_alone(make_generator):
    lr = torch.rand(1, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    before = lr.clone()
    with torch.inference_mode():
        InferenceGenerator(fold(make_generator()))(lr)
    assert torch.equal(lr, before)


def test_folding_shares_nothing_with_the_generator(make_generator):
    generator = make_generator()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    for value in fold(generator).values():
        value.zero_()
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_reindexed_head_equals_the_9x9_head():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4 * 5, 6, 7, generator=random)
    weight = torch.randn(3, 5, 9, 9, generator=random)
    bias = torch.randn(3, generator=random)
    expected = F.conv2d(F.pixel_shuffle(x, 2), weight, bias, padding=4)
    result = F.pixel_shuffle(F.conv2d(x, *reindex_head(weight, bias), padding=2), 2)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_reindexed_head_has_the_gradients_of_the_9x9_head(make_generator):
    generator = make_generator().double()
    lr = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    target = torch.rand(1, 3, 20, 24, dtype=torch.float64)
    gradients = []
    for reindexed in (False, True):
        generator.reindexed_head = reindexed
        generator.zero_grad()
        F.mse_loss(generator(lr), target).backward()
        gradients.append([parameter.grad.clone() for parameter in generator.parameters()])
    plain, reindexed = gradients
    assert all(gradient.abs().max() > 0 for gradient in plain)
    torch.testing.assert_close(reindexed, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reindexed", [False, True])
def test_untrained_network_is_bilinear_enlargement_inside_the_image(reindexed):
    generator = Generator(GeneratorConfig(channels=8, blocks=2), reindexed_head=reindexed).eval()
    generator.initialize_as_interpolation()
    lr = torch.rand(1, 3, 12, 10)
    expected = lr
    for _ in range(2):
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        sr = generator(lr)
    inside = (..., slice(8, -8), slice(8, -8))  # zero padding shows at the edges
    torch.testing.assert_close(sr[inside], expected[inside], rtol=0, atol=1e-5)


def test_every_weight_of_an_untrained_network_can_learn():
    generator = Generator(GeneratorConfig(channels=8, blocks=2))
    generator.initialize_as_interpolation()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    lr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
    for _ in range(3):  # behind each gamma of 0, gradients come a step later
        optimizer.zero_grad()
        F.mse_loss(generator(lr), hr).backward()
        optimizer.step()
    stuck = [name for name, p in generator.named_parameters() if not p.grad.abs().sum() > 0]
    # A bias before a BN that uses the batch's mean has no effect.
    assert all("conv" in name and name.endswith("bias") for name in stuck)


def test_halos_are_as_wide_as_the_network_sees(make_generator):
    """One changed pixel reaches all that lies within the halo, and nothing beyond it."""
    network = InferenceGenerator({k: v.double() for k, v in fold(make_generator()).items()})

    def reach(changed: torch.Tensor, scale: int, at: int) -> int:
        rows = changed.abs().sum((0, 1, 3)).nonzero()[:, 0]
        return max(at - int(rows.min()) // scale, int(rows.max()) // scale - at)

    side, at = 31, 15
    lr = torch.rand(1, 3, side, side, dtype=torch.float64)
    poked = lr.clone()
    poked[..., at, at] += 1
    with torch.no_grad():
        features = network.body(lr)
        assert reach(network.body(poked) - features, 1, at) == network.body_halo
        poked = features.clone()
        poked[..., at, at] += 1
        difference = network.tail(poked) - network.tail(features)
    # Of all but a halo of three features the enlargement is returned.
    halo = network.tail_halo
    assert difference.shape[2:] == (SCALE * (side - 2 * halo), SCALE * (side - 2 * halo))
    assert reach(difference, SCALE, at - halo) == halo


def test_body_ticks_once_a_block(make_generator):
    network = InferenceGenerator(fold(make_generator()))
    ticks = []
    network.body(torch.rand(1, 3, 4, 4), lambda: ticks.append(1))
    assert len(ticks) == network.depth == 2


def test_work_counts_the_multiplications_of_a_pixel(make_generator):
    network = InferenceGenerator(fold(make_generator()))
    c = 8
    assert network.body_work == 81 * 3 * c + (2 * network.depth + 1) * 9 * c * c
    assert network.tail_work == 9 * c * 4 * c + 4 * (9 * c * 4 * c + 25 * 4 * c * 12)


@pytest.mark.parametrize("entries", [{"channels": 2}, {"blocks": 0}])
def test_impossible_sizes_are_refused(entries):
    with pytest.raises(ValueError, match=f"{next(iter(entries))} must be at least"):
        GeneratorConfig(**entries)


def test_prelu_has_the_values_and_gradients_of_torchs():
    torch.manual_seed(0)
    ours, theirs = PReLU().double(), torch.nn.PReLU().double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    results = []
    for prelu in (ours, theirs):
        of = x.clone().requires_grad_()
        y = prelu(of)
        (y * x.cos()).sum().backward()
        results.append((y.detach(), of.grad, prelu.weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_fixed_bn_has_the_values_and_gradients_of_bn_behind_the_convolution():
    torch.manual_seed(0)
    conv, bn = torch.nn.Conv2d(3, 4, 3, padding=1).double(), torch.nn.BatchNorm2d(4).double()
    for value in (bn.weight.data, bn.bias.data, bn.running_mean, bn.running_var):
        value.uniform_(0.5, 1.5)
    bn.eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    results = []
    for function in (convolve_normalized, lambda conv, bn, x: bn(conv(x))):
        of = x.clone().requires_grad_()
        y = function(conv, bn, of)
        wanted = [of, *conv.parameters(), *bn.parameters()]
        results.append([y.detach(), *torch.autograd.grad((y * y.sin()).sum(), wanted)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_bn_of_the_batch_stays_bn_of_the_batch():
    torch.manual_seed(0)
    conv, bn = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
    y = convolve_normalized(conv, bn, torch.randn(8, 3, 9, 9))
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert bn.running_mean.any()


def test_generator_can_be_traced_and_saved_for_other_runtimes(make_generator, tmp_path):
    generator = make_generator().eval()
    lr = torch.rand(1, 3, 6, 7)
    torch.jit.trace(generator, lr).save(str(tmp_path / "traced.pt"))
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(lr), generator(lr))


@pytest.mark.parametrize("kind", [InferenceGenerator, WinogradGenerator])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 29])
def test_bands_give_the_same_picture(make_generator, monkeypatch, kind, height):
    state = fold(make_generator(config=GeneratorConfig(channels=8, blocks=3)))
    lr = torch.rand(1, 3, height, 21, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = kind(state)(lr)
        monkeypatch.setattr("srgan.generator.BAND", 3 * 21)
        assert len(bands(lr)) == max(1, min(height // 2, -(-height // 3)))
        torch.testing.assert_close(kind(state)(lr), expected, rtol=0, atol=1e-5)
