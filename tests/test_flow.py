"""Times, losses and samplers against closed forms: for Gaussians the best velocity and its whole way are known."""

import itertools
import math

import pytest
import torch

from lib import flow

MEAN, STD = 1.5, 0.4  # of the data


def best(mean=MEAN, std=STD):
    """The velocity that has the least loss when data are normal: E[e - x_0 | x_t]."""

    def velocity(x, t):
        t = t.view(-1, *[1] * (x.dim() - 1))
        spread = (1 - t) ** 2 * std**2 + t**2
        return -mean + (x - (1 - t) * mean) * (t - (1 - t) * std**2) / spread

    return velocity


def draw(n, seed=0, shape=(8, 4)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean, std, shift", [(0, 1, 1), (1, 1, 1), (0, 0.5, 3), (-0.5, 2, 0.5)])
def test_times_are_logit_normal_and_shifted(mean, std, shift):
    t = flow.times(200_000, mean, std, shift, torch.Generator().manual_seed(0)).double()
    assert ((t > 0) & (t < 1)).all()
    logits = torch.logit(t)  # a shift adds its logarithm to the logit
    assert logits.mean() == pytest.approx(mean + math.log(shift), abs=0.02)
    assert logits.std() == pytest.approx(std, rel=0.02)


def test_the_way_is_straight_from_data_to_noise():
    x, noise = draw(3, 0), draw(3, 1)
    assert torch.equal(flow.mix(x, noise, torch.zeros(3)), x)
    assert torch.equal(flow.mix(x, noise, torch.ones(3)), noise)
    early, late = flow.mix(x, noise, torch.full((3,), 0.25)), flow.mix(x, noise, torch.full((3,), 0.75))
    assert torch.allclose((late - early) / 0.5, noise - x)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_best_velocity_has_the_loss_that_theory_gives(t):
    x, noise = MEAN + STD * draw(4000, 0), draw(4000, 1)
    t = torch.full((4000,), t, dtype=torch.float64)
    wanted = (STD**2 / ((1 - t[0]) ** 2 * STD**2 + t[0] ** 2)).item()  # the variance of e - x_0 given x_t
    least = flow.errors(best(), x, noise, t).mean().item()
    assert least == pytest.approx(wanted, rel=0.02)
    for worse in (best(MEAN + 0.2), best(MEAN - 0.2), best(MEAN, STD * 1.5), best(MEAN, STD / 1.5)):
        assert flow.errors(worse, x, noise, t).mean() > least


def test_each_sample_has_its_own_error():
    x, noise, t = draw(4, 0), draw(4, 1), torch.tensor([0.1, 0.4, 0.6, 0.9])
    together = flow.errors(best(), x, noise, t)
    alone = [flow.errors(best(), x[i : i + 1], noise[i : i + 1], t[i : i + 1]) for i in range(4)]
    assert together.shape == (4,) and torch.allclose(together, torch.cat(alone))


def test_errors_are_sorted_by_time():
    t = torch.tensor([0.0, 0.05, 0.35, 0.999, 1.0])
    sums, counts = flow.by_time(t, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert sums.tolist() == [3, 0, 0, 4, 0, 0, 0, 0, 0, 24]
    assert counts.tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 2]


def test_the_condition_is_dropped_sample_by_sample():
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([flow.kept(16, 0.1, generator) for _ in range(2000)])
    assert batches.float().mean().item() == pytest.approx(0.9, abs=0.01)
    dropped = (~batches).sum(1).double()  # binomial(16, 0.1) if each throws for itself; 0 or 16 if the batch does
    assert dropped.var().item() == pytest.approx(16 * 0.1 * 0.9, rel=0.1)
    assert flow.kept(1000, 0.0).all() and not flow.kept(1000, 1.0).any()


# -- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_runs_from_noise_to_data(shift):
    times = flow.schedule(7, shift)
    assert len(times) == 8 and times[0] == 1 and times[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(times))
    assert times[3] == pytest.approx(shift * (4 / 7) / (1 + (shift - 1) * (4 / 7)))
    with pytest.raises(ValueError, match="steps = 0"):
        flow.schedule(0)


@pytest.mark.parametrize("sampler, order", [("euler", 1), ("heun", 2)])
def test_samplers_converge_to_the_known_end_with_their_order(sampler, order):
    noise = draw(16)
    end = MEAN + STD * noise  # where the flow of a normal distribution carries each noise
    miss = [
        (flow.SAMPLERS[sampler](best(), noise, flow.schedule(steps)) - end).abs().max().item()
        for steps in (32, 64, 128)
    ]
    assert miss[-1] < (0.03 if order == 1 else 0.003)
    for coarse, fine in itertools.pairwise(miss):
        assert 0.8 * 2**order < coarse / fine < 1.3 * 2**order


@pytest.mark.parametrize("sampler", flow.SAMPLERS)
def test_one_point_is_reached_in_a_single_step(sampler):
    noise = draw(4)
    assert torch.allclose(flow.SAMPLERS[sampler](best(std=0.0), noise, flow.schedule(1)), torch.full_like(noise, MEAN))


def test_heun_asks_nothing_at_the_very_end():
    asked = []

    def velocity(x, t):
        asked.append(t[0].item())
        return torch.zeros_like(x)

    flow.heun(velocity, draw(1), flow.schedule(4))
    assert len(asked) == 7 and min(asked) > 0


def conditional(x, t, keep):
    """Data lie about MEAN with the condition and about 0 without."""
    return torch.where(keep.view(-1, 1, 1), best()(x, t), best(0.0)(x, t))


@pytest.mark.parametrize("sampler", flow.SAMPLERS)
def test_guidance_one_is_no_guidance(sampler):
    noise, times = draw(4), flow.schedule(5)
    plain = flow.SAMPLERS[sampler](best(), noise, times)
    assert torch.equal(flow.SAMPLERS[sampler](flow.guided(conditional, 1.0), noise, times), plain)
    assert torch.allclose(flow.SAMPLERS[sampler](flow.guided(conditional, 1 + 1e-9), noise, times), plain)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.5])
def test_guidance_moves_the_mean_of_gaussians_by_its_scale(scale):
    noise = draw(4)
    found = flow.heun(flow.guided(conditional, scale), noise, flow.schedule(256))
    assert (found - (scale * MEAN + STD * noise)).abs().max() < 1e-3


def test_guidance_is_off_outside_its_interval():
    noise, t = draw(2), torch.full((2,), 0.9, dtype=torch.float64)
    v = flow.guided(conditional, 3.0, (0.2, 0.8))
    assert torch.equal(v(noise, t), best()(noise, t))
    assert not torch.allclose(v(noise, t - 0.4), best()(noise, t - 0.4))
