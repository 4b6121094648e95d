"""The adversarial stage's losses, its discriminator, and VGG19."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from train.discriminator import Discriminator
from train.losses import (
    PAPER_VGG_SCALE,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    normalized_vgg_loss,
    paper_vgg_loss,
    r1_penalty,
    relative_vgg_loss,
    spectrum_loss,
    stationarity_loss,
)
from train.metrics import checkerboard, color_shift, feature_distances, strokes
from train.vgg import LAYERS, VGG19, VGGError


def test_discriminator_has_the_papers_layers():
    discriminator = Discriminator(96)
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2] * 4
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in discriminator.modules()) == 7
    dense = [m for m in discriminator.modules() if isinstance(m, torch.nn.Linear)]
    assert [(d.in_features, d.out_features) for d in dense] == [(512 * 6 * 6, 1024), (1024, 1)]


def test_discriminator_returns_logits_and_activations():
    logits, activations = Discriminator(32, width=0.125)(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3,)
    assert [a.shape[2] for a in activations] == [32, 16, 16, 8, 8, 4, 4, 2]


def test_spectral_logit_does_not_depend_on_the_rest_of_the_batch():
    discriminator = Discriminator(32, normalization="spectral", width=0.125).eval()
    images = torch.rand(4, 3, 32, 32)
    together, _ = discriminator(images)
    alone, _ = discriminator(images[:1])
    assert torch.allclose(together[:1], alone, atol=1e-6)


def test_discriminator_refuses_a_crop_it_cannot_halve_four_times():
    with pytest.raises(ValueError, match="multiple of 16, got 40"):
        Discriminator(40)


def test_standard_losses_are_cross_entropy():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    expected = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    assert torch.allclose(discriminator_loss(real, fake, relativistic=False), expected)
    assert torch.allclose(generator_loss(real, fake, relativistic=False), F.softplus(-fake).mean())


def test_relativistic_losses_know_only_differences():
    real, fake = torch.randn(5), torch.randn(5)
    for loss in (discriminator_loss, generator_loss):
        moved = loss(real + 3, fake + 3, relativistic=True)
        assert torch.allclose(loss(real, fake, relativistic=True), moved, atol=1e-5)


def test_relativistic_generator_and_discriminator_want_the_opposite():
    real, fake = torch.randn(5), torch.randn(5)
    swapped = discriminator_loss(fake, real, relativistic=True)
    assert torch.allclose(generator_loss(real, fake, relativistic=True), swapped)


def test_undecided_discriminator_costs_log_2():
    zeros = torch.zeros(4)
    for relativistic in (False, True):
        assert discriminator_loss(zeros, zeros, relativistic=relativistic).item() == pytest.approx(
            math.log(2)
        )


def smooth_noise(*shape: int) -> torch.Tensor:
    """Texture that is the same everywhere, about 2 pixels fine."""
    return 0.5 + 0.1 * F.avg_pool2d(torch.randn(shape), 3, stride=1, padding=1)


@pytest.mark.parametrize("strength", [1.0, 0.05])
def test_stationarity_loss_sees_what_is_locked_to_the_grid(strength):
    texture = 0.5 + strength * (smooth_noise(8, 3, 96, 96) - 0.5)
    plain = stationarity_loss(texture).item()
    assert plain < 0.01
    grid = 0.02 * strength * torch.randn(4, 4).tile(24, 24)
    assert stationarity_loss(texture + grid).item() > 5 * plain
    # In each LR pixel one pattern, with a sign of its own: nothing of it is left in the mean.
    signs = torch.randn(8, 1, 24, 24).sign().repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert stationarity_loss(texture + grid * signs).item() > 5 * plain


def test_stationarity_loss_sees_enlarged_pixels_but_not_where_the_picture_is_cut():
    hr = smooth_noise(8, 3, 100, 100)
    same = [stationarity_loss(hr[:, :, i : 96 + i, i : 96 + i]).item() for i in range(4)]
    assert max(same) < 0.01
    lr = F.avg_pool2d(hr[:, :, :96, :96], 4)
    assert stationarity_loss(F.interpolate(lr, scale_factor=4)).item() > 20 * max(same)


def test_stationarity_loss_of_even_and_small_images():
    assert stationarity_loss(torch.full((1, 3, 16, 24), 0.3)).item() < 1e-6
    assert math.isfinite(stationarity_loss(torch.rand(1, 3, 8, 12)).item())


def test_spectrum_loss_sees_strokes_along_the_axes_and_not_where_texture_lies():
    hr = smooth_noise(8, 3, 96, 96)
    assert spectrum_loss(hr, hr).item() == 0
    same = spectrum_loss(smooth_noise(8, 3, 96, 96), hr).item()  # another noise of the same kind
    strokes = 0.5 + 0.1 * F.avg_pool2d(torch.randn(8, 3, 96, 96), (1, 9), 1, padding=(0, 4))
    both = torch.cat([strokes[:4], strokes[4:].mT])
    assert same < 0.02
    assert spectrum_loss(both, hr).item() > 10 * same
    assert spectrum_loss(0.5 + 0.1 * (both - 0.5), hr).item() > 10 * same  # however faint


def test_spectrum_loss_is_1_where_there_is_no_detail_and_has_gradients_there():
    hr = smooth_noise(2, 3, 32, 48)
    flat = torch.full_like(hr, 0.5) + 1e-6 * torch.randn_like(hr)
    loss = spectrum_loss(flat.requires_grad_(), hr)
    assert loss.item() == pytest.approx(1, abs=0.05)
    (gradient,) = torch.autograd.grad(loss, flat)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    even = torch.full_like(hr, 0.5, requires_grad=True)
    for original in (hr, even.detach()):
        (gradient,) = torch.autograd.grad(spectrum_loss(even, original), even)
        assert gradient.isfinite().all()


def test_feature_matching_is_zero_for_equal_activations():
    activations = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    assert feature_matching_loss(activations, [a.clone() for a in activations]).item() == 0
    shifted = [a + 0.5 for a in activations]
    assert feature_matching_loss(activations, shifted).item() == pytest.approx(0.5)


def test_r1_penalty_is_the_squared_gradient():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = 2 * images.sum((1, 2, 3))
    assert r1_penalty(logits, images).item() == pytest.approx(4 * 3 * 4 * 4)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """VGG19 with random weights, written and read in the file format of real ones."""
    from torchvision.models import vgg19

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    features = vgg19(weights=None).features
    save_file({f"features.{k}": v.half() for k, v in features.state_dict().items()}, path)
    return VGG19(path)


def test_vgg_layers_are_the_activations_after_the_named_convolutions(vgg):
    channels = dict(zip(LAYERS, (64, 128, 256, 512, 512), strict=True))
    for i, (name, features) in enumerate(
        zip(LAYERS, vgg(torch.rand(1, 3, 32, 32), tuple(LAYERS)), strict=True)
    ):
        assert features.shape == (1, channels[name], 32 >> i, 32 >> i)
        assert features.min() >= 0


@pytest.mark.parametrize("faulty", ["missing", "garbage", "wrong"])
def test_vgg_names_an_unusable_file(tmp_path, faulty):
    path = tmp_path / "vgg.safetensors"
    if faulty == "garbage":
        path.write_bytes(b"not safetensors")
    elif faulty == "wrong":
        save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(VGGError, match=r"vgg\.safetensors"):
        VGG19(path)


def test_vgg_losses_are_zero_for_equal_images_and_have_gradients_through_sr(vgg):
    hr = torch.rand(1, 3, 32, 32)
    sr = (hr + 0.1 * torch.rand_like(hr)).requires_grad_()
    weights = {"relu1_2": 0.5, "relu3_4": 1.0}
    assert paper_vgg_loss(vgg, hr, hr).item() == 0
    for layered in (relative_vgg_loss, normalized_vgg_loss):
        assert layered(vgg, hr, hr, weights).item() == pytest.approx(0, abs=1e-6)
    for loss in (
        paper_vgg_loss(vgg, sr, hr),
        relative_vgg_loss(vgg, sr, hr, weights),
        normalized_vgg_loss(vgg, sr, hr, weights),
    ):
        (gradient,) = torch.autograd.grad(loss, sr)
        assert loss.item() > 0
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("loss", [relative_vgg_loss, normalized_vgg_loss])
def test_layers_without_weight_are_not_computed(vgg, monkeypatch, loss):
    sr, hr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    expected = loss(vgg, sr, hr, {"relu2_2": 2.0})
    deep = vgg.features[LAYERS["relu2_2"] + 1]
    monkeypatch.setattr(deep, "forward", lambda x: pytest.fail("a layer above was computed"))
    weights = {"relu1_2": 0.0, "relu2_2": 2.0, "relu5_4": 0.0}
    assert loss(vgg, sr, hr, weights) == expected


def test_normalized_loss_is_the_feature_distance_but_where_features_are_weak(vgg):
    sr, hr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    (distance,) = feature_distances(vgg, [sr], hr)
    loss = normalized_vgg_loss(vgg, sr, hr, dict.fromkeys(LAYERS, 1.0)).item()
    assert loss == pytest.approx(distance, rel=0.05)


def test_normalized_loss_has_gradients_where_there_are_no_features():
    sr, hr = torch.zeros(1, 4, 2, 2, requires_grad=True), torch.rand(1, 4, 2, 2)
    loss = normalized_vgg_loss(identity, sr, hr, {"relu1_2": 1.0})
    (gradient,) = torch.autograd.grad(loss, sr)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def identity(image, layers):
    """In VGG19's place: the features are the image."""
    return [image]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalized_loss_and_its_gradient_are_those_of_the_definition(dtype):
    sr, hr = (torch.randn(2, 16, 5, 4).relu().to(dtype).requires_grad_() for _ in range(2))
    wide = [image.detach().double().requires_grad_() for image in (sr, hr)]
    least = 0.01 * wide[1].detach().square().sum(1).mean()
    a, b = (x / (x.square().sum(1, keepdim=True) + least).sqrt() for x in wide)
    expected = (a - b).square().sum(1).mean()
    loss = normalized_vgg_loss(identity, sr, hr, {"relu1_2": 1.0})
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 2e-3}
    torch.testing.assert_close(loss.double(), expected, **near)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(sr.grad.double(), wide[0].grad, **near)


def test_paper_loss_is_squared_error_of_scaled_features(vgg):
    sr, hr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    (a,), (b,) = vgg(sr, ("relu5_4",)), vgg(hr, ("relu5_4",))
    expected = (a - b).square().mean() / PAPER_VGG_SCALE**2
    assert torch.allclose(paper_vgg_loss(vgg, sr, hr), expected)


def test_feature_distance_is_zero_only_for_equal_images(vgg):
    hr = torch.rand(1, 3, 32, 48)
    near, far = (hr + 0.02).clamp(0, 1), torch.rand_like(hr)
    distances = feature_distances(vgg, [hr, near, far], hr)
    assert 0 == distances[0] < distances[1] < distances[2]


def test_feature_distance_refuses_different_sizes(vgg):
    with pytest.raises(ValueError, match="one size"):
        feature_distances(vgg, [torch.rand(1, 3, 32, 32)], torch.rand(1, 3, 32, 36))


def test_color_shift_is_signed_and_in_levels():
    hr = torch.full((1, 3, 8, 8), 0.5)
    sr = hr + torch.tensor([2.0, 0.0, -3.0]).view(1, 3, 1, 1) / 255
    assert color_shift(sr, hr) == pytest.approx([2, 0, -3], abs=1e-3)


def test_strokes_are_what_runs_along_the_axes():
    noise = 0.5 + 0.1 * torch.randn(1, 3, 256, 256)
    assert abs(strokes(noise)) < 1
    rows = 0.1 * F.avg_pool2d(torch.randn(1, 3, 256, 256), (1, 9), 1, padding=(0, 4))
    assert strokes(noise + 2 * rows) > 3 < strokes((noise + 2 * rows).mT)
    turned = F.avg_pool2d(torch.randn(1, 3, 512, 512), (1, 9), 1, padding=(0, 4))[0, 0]
    down, across = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    diagonal = 0.1 * turned[(down + across) % 512, (down - across) % 512]
    assert strokes(noise + 2 * diagonal) < -1


@pytest.mark.parametrize("period", [2, 4])
def test_checkerboard_sees_what_repeats_with_the_lr_grid(period):
    noise = 0.05 * torch.randn(1, 3, 160, 128)
    assert abs(checkerboard(noise)) < 1.5
    rows, columns = torch.meshgrid(torch.arange(160), torch.arange(128), indexing="ij")
    grid = ((rows // (period // 2) + columns // (period // 2)) % 2).float()
    assert checkerboard(noise + 0.05 * grid) > 3
    other = 0.05 * torch.sin(2 * math.pi * (rows + columns) / 5.3)
    assert abs(checkerboard(noise + other)) < 1.5
