import copy

import pytest
import torch
from torch import nn

from train.muon import MAGNITUDE, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(5, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_singular_values_come_near_1(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    assert result.shape == shape
    before, after = (torch.linalg.svdvals(m) for m in (matrices, result))
    small = before < 0.02 * before.amax(1, keepdim=True)
    assert after.amax() < 1.3
    assert after[~small].amin() > 0.6


def test_orthogonalizing_keeps_singular_vectors():
    matrix = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    cosine = (u.T @ orthogonalize(matrix)[0] @ v.T).diagonal()
    torch.testing.assert_close(
        u @ torch.diag(cosine) @ v, orthogonalize(matrix)[0], rtol=0, atol=1e-5
    )


def test_bfloat16_does_for_orthogonalizing():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), orthogonalize(matrices), rtol=0, atol=0.05)


def test_orthogonalizing_zeros_gives_zeros():
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def test_a_step_has_the_learning_rates_size_whatever_the_gradients():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 32, 1)]
    weights = [conv.weight for conv in convolutions]
    before = [weight.detach().clone() for weight in weights]
    for weight, size in zip(weights, (1e-6, 1.0, 1e3), strict=True):
        weight.grad = size * torch.randn_like(weight)
    Muon(weights, learning_rate=0.01).step()
    for weight, earlier in zip(weights, before, strict=True):
        change = weight.detach() - earlier
        assert change.square().mean().sqrt().item() == pytest.approx(0.01 * MAGNITUDE, rel=0.2)
        assert (change * weight.grad).sum() < 0


def test_it_finds_a_minimum_that_few_gradients_point_to():
    torch.manual_seed(0)
    scales = torch.logspace(0, -2, 16)  # of the inputs
    wanted = torch.randn(8, 16)
    weight = nn.Parameter(torch.zeros(8, 16))
    muon = Muon([weight], learning_rate=0.0)
    for step in range(300):
        muon.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        muon.zero_grad()
        (scales * (weight - wanted)).square().sum().backward()
        muon.step()
    assert (weight - wanted).abs().mean() < 0.1 * wanted.abs().mean()


def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_saved():
    torch.manual_seed(0)
    one = nn.Conv2d(8, 8, 3)
    optimizer = Muon([one.weight], learning_rate=0.01)
    gradients = torch.randn(4, *one.weight.shape)

    def train(conv: nn.Conv2d, muon: Muon, part: slice) -> None:
        for gradient in gradients[part]:
            conv.weight.grad = gradient.clone()
            muon.step()

    train(one, optimizer, slice(0, 2))
    two = copy.deepcopy(one)
    other = Muon([two.weight], learning_rate=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(one, optimizer, slice(2, 4))
    train(two, other, slice(2, 4))
    assert torch.equal(one.weight, two.weight)


def test_a_step_is_the_formulas_for_each_of_several_matrices():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 12, 1)]
    convolutions[0].to(memory_format=torch.channels_last)
    weights = [conv.weight for conv in convolutions]
    expected, means = [w.detach().clone() for w in weights], [0.0] * 3
    muon = Muon(weights, learning_rate=0.01, momentum=0.9)
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn_like(weight)
            means[i] = 0.9 * means[i] + 0.1 * weight.grad
            look = 0.1 * weight.grad + 0.9 * means[i]
            step = orthogonalize(look.flatten(1)[None])[0].view_as(weight)
            expected[i] -= 0.01 * MAGNITUDE * max(look.flatten(1).shape) ** 0.5 * step
        muon.step()
    for weight, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, rtol=0, atol=1e-5)


def test_parameters_without_gradients_are_left_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], learning_rate=1.0).step()
    assert torch.equal(weight, torch.ones(2, 2))
