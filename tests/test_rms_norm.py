"""Normalization and activation with gradients of their own, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from nanogpt.rms_norm import EPSILON, rms_norm
from nanogpt.squared_relu import squared_relu


@pytest.mark.parametrize("function", [rms_norm, squared_relu])
def test_gradients_are_those_of_finite_differences(function):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_rms_norm_is_torchs(dtype, size):
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 5, size)).to(dtype).requires_grad_()
    slope = torch.randn(2, 5, size).to(dtype)
    expected = F.rms_norm(x, (size,), eps=EPSILON)
    (expected_slope,) = torch.autograd.grad(expected, x, slope)
    found = rms_norm(x)
    (found_slope,) = torch.autograd.grad(found, x, slope)
    assert found.dtype == found_slope.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found_slope, expected_slope, atol=tolerance, rtol=tolerance)


def test_a_vector_of_zeros_stays_one():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert not y.any() and x.grad is not None and x.grad.isfinite().all()


def test_squared_relu():
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], requires_grad=True)
    y = squared_relu(x)
    assert y.tolist() == [0, 0, 0.25, 9]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 1, 6]


def test_not_a_number_shows():
    assert squared_relu(torch.tensor([float("nan")])).isnan().all()
    assert rms_norm(torch.tensor([1.0, float("nan")])).isnan().all()
