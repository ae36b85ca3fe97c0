"""Rectified flow: a straight way from noise to data, its training loss, and samplers that walk it backwards.

t = 0 is data, t = 1 is noise: x_t = (1 - t) x_0 + t e. What is learned is the velocity v = dx/dt = e - x_0.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # v(x (n, T, C), t (n,)) -> (n, T, C)


# -- training ---------------------------------------------------------------------------------------------------------


def times(n: int, mean: float = 0.0, std: float = 1.0, shift: float = 1.0, generator=None, device=None) -> Tensor:
    """Logit-normal times (Esser et al. 2024, eq. 19), shifted toward noise: long token sequences need more of it."""
    return shifted(torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device)), shift)  # (n,)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Esser et al. 2024, eq. 23: the time at which `shift`^2 times as many tokens are as unclear as these at t."""
    return shift * t / (1 + (shift - 1) * t)


def mix(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    t = t.view(-1, *[1] * (x.dim() - 1))
    return (1 - t) * x + t * noise


def kept(n: int, dropout: float, generator=None, device=None) -> Tensor:
    """Which samples of a batch keep their condition: each by its own throw, so that every batch has both kinds."""
    return torch.rand(n, generator=generator, device=device) >= dropout  # (n,) bool


def errors(velocity: Velocity, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of each sample's velocity, in float32: (n,)."""
    found = velocity(mix(x, noise, t), t)
    return (found.float() - (noise - x).float()).square().flatten(1).mean(1)


def by_time(t: Tensor, error: Tensor, bins: int = 10) -> tuple[Tensor, Tensor]:
    """Sums and counts of errors in equal bins of t, both (bins,): a mean of the loss hides where it is large."""
    index = (t * bins).long().clamp(0, bins - 1)
    sums = torch.zeros(bins, device=t.device).index_add_(0, index, error.detach().float())
    return sums, torch.bincount(index, minlength=bins).float()


# -- sampling ---------------------------------------------------------------------------------------------------------


def schedule(steps: int, shift: float = 1.0) -> list[float]:
    """Times from 1 (noise) to 0 (data) in as many steps; shifted as in training, they linger near the noise."""
    if steps < 1:
        raise ValueError(f"steps = {steps}; wanted at least 1")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def guided(velocity: Callable, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Velocity:
    """Classifier-free guidance of v(x, t, kept): away from the velocity without condition, `scale` times as far.

    Scale 1 is no guidance and costs one evaluation; so do times outside the interval, where it only does harm when
    few are clear (Kynkäänniemi et al. 2024).
    """
    low, high = interval

    def v(x: Tensor, t: Tensor) -> Tensor:
        n = len(x)
        if scale == 1 or not low <= float(t[0]) <= high:
            return velocity(x, t, torch.ones(n, dtype=torch.bool, device=x.device))
        keep = torch.arange(2 * n, device=x.device) < n
        both = velocity(torch.cat([x, x]), torch.cat([t, t]), keep)
        return both[n:] + scale * (both[:n] - both[n:])

    return v


def euler(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Euler's method, first order."""
    for t, following in itertools.pairwise(times):
        x = x + (following - t) * velocity(x, x.new_full((len(x),), t))
    return x


def heun(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Heun's method, second order: two evaluations a step, but one in the last, where t = 0 was never trained well."""
    for t, following in itertools.pairwise(times):
        v = velocity(x, x.new_full((len(x),), t))
        there = x + (following - t) * v
        if following > 0:
            v = (v + velocity(there, x.new_full((len(x),), following))) / 2
            there = x + (following - t) * v
        x = there
    return x


SAMPLERS = {"euler": euler, "heun": heun}
