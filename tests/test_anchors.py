"""Farthest points against the plain algorithm, places that fill the box, the best of all orders."""

from itertools import permutations

import numpy as np
import torch

from lib.anchors import farthest, match, nearest, places, take


def cloud(batch, count):
    return torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_farthest_points_are_those_of_the_plain_algorithm():
    points = cloud(3, 500)
    found = farthest(points, 40, seed=7)
    for P, chosen in zip(points.numpy(), found.numpy(), strict=True):
        wanted = [chosen[0]]
        while len(wanted) < 40:
            wanted.append(np.linalg.norm(P[:, None] - P[wanted], axis=-1).min(1).argmax())
        assert list(chosen) == wanted
    assert torch.equal(found, farthest(points, 40, seed=7)) and not torch.equal(found, farthest(points, 40, seed=8))
    assert torch.equal(found[1:2], farthest(points[1:2], 40, seed=7))


def test_places_fill_the_box_and_the_first_ones_stay():
    many = places(1024)
    assert torch.equal(many[:100], places(100)) and many.abs().max() <= 0.95
    counts = torch.histogramdd(many, [4, 4, 4], range=[-0.95, 0.95] * 3).hist
    assert counts.min() >= 13 and counts.max() <= 19  # 16 each; a random set has between 5 and 28


def test_matching_is_the_best_of_all_orders():
    anchors = cloud(1, 5)
    costs = {order: (anchors[0, list(order)] - places(5)).square().sum().item() for order in permutations(range(5))}
    assert tuple(match(anchors)[0].tolist()) == min(costs, key=costs.get)


def test_matching_gives_tokens_an_order_that_one_shape_shares_with_another():
    """Boxes of many sizes: of where token k lies, its number says most, and the shape most of the rest."""
    random = torch.Generator().manual_seed(0)
    P = torch.rand(12, 4, 256, 3, generator=random) * 2 - 1  # 12 boxes, each drawn four times
    face = P.abs().argmax(-1, keepdim=True)
    P = P.scatter(-1, face, P.gather(-1, face).sign()) * (0.3 + 0.6 * torch.rand(12, 1, 1, 3, generator=random))

    def left(A):
        spread = (A - A.mean((0, 1, 2))).square().mean()
        return (A - A.mean((0, 1))).square().mean() / spread, (A - A.mean(1, keepdim=True)).square().mean() / spread

    A = take(P.flatten(0, 1), farthest(P.flatten(0, 1), 32))
    number, shape = left(A.view(12, 4, 32, 3))
    assert number > 0.9 and shape > 0.5
    number, shape = left(take(A, match(A)).view(12, 4, 32, 3))
    assert number < 0.35 and shape < 0.2


def test_nearest_is_nearest():
    points = cloud(3, 100)
    found = take(points, nearest(places(9), points))
    apart = (points[:, None] - places(9)[:, None]).square().sum(-1)  # (3, 9, 100)
    assert torch.equal((found - places(9)).square().sum(-1), apart.min(2).values)
