"""The noise as a differentiable function: of its strengths, of the activations that it depends on, and of its sign."""

import numpy as np
import pytest
import torch
from networks import CPU, KINDS, ConvNet, EagerAttention, LinearSoftmax, hardware, initialised, normal

from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector, SiteNoise
from precalloc.objective import Granularity

NETWORKS = {"attention": (EagerAttention(), (3, 4)), "convolutions": (ConvNet(), (2, 6, 6))}


@pytest.mark.parametrize("kind", KINDS)
def test_opposite_signs_cancel_what_is_linear_in_the_noise(kind):
    model, x = initialised(LinearSoftmax(), seed=1), normal(2, 8, 5)
    kmap = KMap(Granularity.LAYER, hardware((kind,)), {"layer": np.ones(1)}, {"layer": SiteRanges(4.0)})
    clean, noisy = model(x), []
    for sign in (1.0, -1.0):
        with intercept(model, NoiseInjector.of(kmap, 3, CPU, sign)):
            noisy.append(model(x))
    assert float((noisy[0] - clean).detach().abs().max()) > 0.01
    torch.testing.assert_close((noisy[0] + noisy[1]) / 2, clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_in_log_strength_is_the_slope(name, kind):
    """With the same random numbers the loss is a smooth function of the strength, through all that follows."""
    model, shape = NETWORKS[name]
    model, x = initialised(model, seed=1).double(), normal(2, 4, *shape).double()
    x[0] = 0.0  # no input, no shot noise: the deviation has an infinite slope there

    def loss(log_strength):
        noise = SiteNoise({kind: log_strength.exp()}, SiteRanges(3.0, 2.0))
        injector = NoiseInjector(_Everywhere(noise), 5, CPU)
        with intercept(model, injector):
            return model(x).square().sum()

    at, step = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True), 1e-5
    (gradient,) = torch.autograd.grad(loss(at), at)
    # Not under no_grad: torch lays out some products otherwise there, and the same numbers fall elsewhere.
    slope = ((loss(at + step) - loss(at - step)) / (2 * step)).detach()
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close(gradient, slope.reshape(1), rtol=1e-5, atol=0.0)


class _Everywhere(dict):
    def __init__(self, noise):
        super().__init__()
        self._noise = noise

    def __contains__(self, site):
        return True

    def __missing__(self, site):
        return self._noise
