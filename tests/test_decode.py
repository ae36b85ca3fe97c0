"""Sparse decoding against dense, closed forms and counts: what is found, what may be missed, what it costs."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import decode, vae
from lib.dataset import BOX

BOTH = pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])


# -- fields, positive inside -------------------------------------------------------------------------------------------


def ball(r=0.6, center=(0.0, 0.0, 0.0)):
    return lambda X: r - (X - X.new_tensor(center)).norm(dim=1)


def box(half, center=(0.0, 0.0, 0.0), turn=0.0):
    c, s = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]])

    def field(X):
        d = ((X - X.new_tensor(center)) @ rotation.to(X)).abs() - X.new_tensor(half)
        return -(d.clamp(min=0).norm(dim=1) + d.amax(1).clamp(max=0))

    return field


def torus(X):
    return 0.22 - torch.stack([X[:, :2].norm(dim=1) - 0.6, X[:, 2]], 1).norm(dim=1)


def union(*fields):
    return lambda X: torch.stack([field(X) for field in fields]).amax(0)


def clipped(field, clip):
    return lambda X: (field(X) / clip).clamp(-1, 1)


def noise(X):
    """A value of its own for every corner, without any order."""
    return ((X * X.new_tensor([12345.7, 23456.8, 34567.9])).sum(1).sin() * 54321.9).sin()


MUG = union(
    box((0.5, 0.4, 0.5), turn=0.4), lambda X: torus(X * 1.1 + 0.1) / 1.1, box((0.02, 0.6, 0.5), (0.4, 0.3, 0.3), 1)
)


# -- what a mesh must be -----------------------------------------------------------------------------------------------


def sound(V, F):
    """Closed, manifold along edges, no face without an area, every vertex used; its volume, area and Euler number."""
    V, F = V.double().cpu(), F.long().cpu()
    edges = torch.cat([F[:, [0, 1]], F[:, [1, 2]], F[:, [2, 0]]])
    key = edges[:, 0] * len(V) + edges[:, 1]
    back = edges[:, 1] * len(V) + edges[:, 0]
    assert torch.equal(key.sort()[0], back.sort()[0]) and len(key.unique()) == len(key)
    assert torch.equal(F.unique(), torch.arange(len(V)))
    A, B, C = V[F].unbind(1)
    cross = torch.linalg.cross(B - A, C - A)
    assert len(F) == 0 or cross.norm(dim=1).min() > 0
    return float((A * cross).sum() / 6), float(cross.norm(dim=1).sum() / 2), len(V) - len(edges) // 2 + len(F)


@BOTH
@pytest.mark.parametrize("depth", [3, 5, 7, 8])
def test_a_ball_is_a_ball(depth, exact):
    V, F, facts = decode.decode(clipped(ball(), 0.05), depth, exact=exact, clip=0.05)
    h = 2 * BOX / 2**depth
    volume, area, euler = sound(V, F)
    assert euler == 2
    assert abs(volume / (4 / 3 * math.pi * 0.6**3) - 1) < 2 * h**2 and abs(area / (4 * math.pi * 0.36) - 1) < 2 * h**2
    off = V.norm(dim=1) - 0.6
    assert off.abs().max() < (h**2 if h < 0.05 else h)  # clipped values bend the line between corners
    assert V.mean(0).abs().max() < 1e-3 * h  # the mapping is exact: half a cell of shift would show here
    assert facts["faces"] == len(F) and facts["vertices"] == len(V) and not facts["cut"]


@BOTH
@pytest.mark.parametrize("clip", [0.015, 0.05, 1.0])
@pytest.mark.parametrize("shape", [torus, MUG], ids=["torus", "mug"])
def test_it_is_the_dense_decodes_mesh_bit_for_bit(shape, clip, exact):
    field = clipped(shape, clip)
    V, F, facts = decode.decode(field, 7, exact=exact, clip=clip)
    V2, F2, dense = decode.dense(field, 7)
    assert torch.equal(V, V2) and torch.equal(F, F2)
    assert facts["cells"] == dense["cells"] and facts["corners"] == dense["corners"] and dense["queries"] == 129**3
    sound(V, F)


def test_numpy_counts_the_same_corners():
    _, _, facts = decode.decode(torus, 6)
    axis = torch.arange(65) * 2 * BOX / 64 - BOX
    inside = (torus(torch.cartesian_prod(axis, axis, axis)) > 0).reshape(65, 65, 65).numpy()
    crossed = np.zeros((64, 64, 64), bool)
    corners = np.zeros_like(inside)
    cuts = [slice(None, -1), slice(1, None)]
    eight = [inside[a, b, c] for a in cuts for b in cuts for c in cuts]
    crossed = np.any(eight, 0) & ~np.all(eight, 0)
    for a in cuts:
        for b in cuts:
            for c in cuts:
                corners[a, b, c] |= crossed
    assert facts["cells"] == crossed.sum() and facts["corners"] == corners.sum()


@BOTH
def test_no_point_is_asked_twice_and_all_are_counted(exact):
    seen = []

    def spy(X):
        seen.append(X.clone())
        return clipped(MUG, 0.05)(X)

    facts = decode.decode(spy, 7, exact=exact, clip=0.05, chunk=5000)[2]
    points = torch.cat(seen)
    assert len(points) == facts["queries"] == len(points.unique(dim=0))
    assert max(map(len, seen)) == 5000 and points.abs().max() <= BOX * (1 + 1e-6)
    index = (points + BOX) / (2 * BOX / 128)
    assert (index - index.round()).abs().max() < 1e-4


@BOTH
def test_the_size_of_a_chunk_changes_nothing(exact):
    one, other = (decode.decode(clipped(MUG, 0.05), 6, exact=exact, clip=0.05, chunk=n) for n in (77, 0))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(("exact", "bar"), [(False, 1.5), (True, 4.1)])
def test_queries_stay_below_the_bars_at_depth_8(exact, bar):
    facts = decode.decode(clipped(MUG, 0.05), 8, exact=exact, clip=0.05)[2]
    assert 1 < facts["per_corner"] < bar and facts["of_dense"] < (0.13 if exact else 0.06)
    assert facts["of_dense"] == facts["queries"] / 257**3


# -- what fast mode may miss -------------------------------------------------------------------------------------------


def balls(r, count=4):
    """A lattice of balls, each elsewhere in its cells, and one large body."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-0.9, 0.9, count)
    centers = torch.cartesian_prod(axis, axis, axis) + 0.06 * (torch.rand(count**3, 3, generator=generator) - 0.5)
    centers = centers[centers.norm(dim=1) > 0.6]
    return centers, lambda X: torch.maximum(r - torch.cdist(X, centers).amin(1), ball(0.4)(X))


def found(V, centers, r) -> float:
    """The share of balls that have vertices."""
    if not len(V):
        return 0.0
    near = torch.cdist(centers, V[V.norm(dim=1) > 0.5]).amin(1) < 2 * r + 0.01
    return float(near.float().mean())


@BOTH
@pytest.mark.parametrize(("depth", "clip"), [(7, 0.05), (8, 0.015), (8, 0.05), (7, 1.0), (5, 0.05)])
def test_a_piece_that_holds_the_promised_ball_is_found(depth, clip, exact):
    r = 1.001 * decode.smallest(depth, clip, exact)
    centers, field = balls(r)
    V, F, _ = decode.decode(clipped(field, clip), depth, exact=exact, clip=clip)
    assert found(V, centers, r) == 1
    assert sound(V, F)[2] == 2 * (len(centers) + 1)


def test_what_fast_misses_is_whole_pieces_never_part_of_one():
    r = 0.3 * decode.smallest(7, 0.05)
    centers, field = balls(r)
    field = clipped(field, 0.05)
    V, F, _ = decode.decode(field, 7, clip=0.05)
    assert 0 < found(V, centers, r) < 1
    _, _, euler = sound(V, F)
    V2, F2, _ = decode.decode(field, 7, exact=True, clip=0.05)
    assert {tuple(v) for v in V.tolist()} < {tuple(v) for v in V2.tolist()}
    assert euler < sound(V2, F2)[2] and euler % 2 == 0 and len(F) < len(F2)
    V3, F3, _ = decode.dense(field, 7)
    assert torch.equal(V2, V3) and torch.equal(F2, F3)


def test_the_promise_is_about_half_a_diagonal_of_the_coarse_cells():
    assert decode.coarsest(0.015) == 6 and decode.coarsest(0.05) == 5 and decode.coarsest(1.0) == 4
    assert decode.smallest(10, 0.015) == pytest.approx(3**0.5 / 2 * 2.1 / 64 - 0.95 * 0.015)
    assert decode.smallest(8, 0.015) == pytest.approx(3**0.5 / 2 * 2.1 / 64)  # where it seeks a corner inside
    assert decode.smallest(8, 0.05, exact=True) == pytest.approx(decode.smallest(8, 0.05) / 2)
    assert decode.smallest(6, 0.05, start=6) == decode.span(6)


@pytest.mark.parametrize("thickness", [0.3, 0.7, 1.2])
def test_thin_parts_that_hang_on_a_body_are_followed_to_their_end(thickness):
    h = 2 * BOX / 128
    fin = box((0.8, 0.7, thickness * h / 2), turn=0.6)
    field = clipped(union(ball(0.3), fin), 0.015)
    V, F, _ = decode.decode(field, 7, clip=0.015)
    V2, F2, _ = decode.dense(field, 7)
    sound(V, F)
    if thickness > 1:  # thinner ones are islands on any grid
        assert torch.equal(V, V2) and torch.equal(F, F2)
    assert {tuple(v) for v in V.tolist()} <= {tuple(v) for v in V2.tolist()}


@BOTH
@pytest.mark.parametrize("thickness", [1.2, 2.2])
def test_a_sheet_that_hangs_on_nothing_is_found_whole(thickness, exact):
    h = 2 * BOX / 128
    field = clipped(union(ball(0.15, (0.8, 0.8, 0.8)), box((0.8, 0.7, thickness * h / 2), turn=0.6)), 0.05)
    V, F, _ = decode.decode(field, 7, exact=exact, clip=0.05)
    V2, F2, _ = decode.dense(field, 7)
    assert sound(V, F)[2] == 4 or thickness < 2  # it is thinner than a cell's diagonal, and any grid sees holes in it
    assert torch.equal(V, V2) and torch.equal(F, F2)


@BOTH
def test_a_cavity_is_found_like_a_piece(exact):
    field = clipped(lambda X: torch.minimum(ball(0.8)(X), -ball(0.1, (0.2, 0.1, 0.3))(X)), 0.05)
    volume, _, euler = sound(*decode.decode(field, 7, exact=exact, clip=0.05)[:2])
    assert euler == 4 and volume == pytest.approx(4 / 3 * math.pi * (0.8**3 - 0.1**3), rel=1e-3)


# -- what bends -------------------------------------------------------------------------------------------------------


def around_a_cell(field, count):
    """Values (3, 3, 3, n) of fields of points (..., 3) about n cells of side 2, whose halves have side 1."""
    axis = torch.arange(3.0)
    X = torch.cartesian_prod(axis, axis, axis).view(3, 3, 3, 1, 3).expand(-1, -1, -1, count, -1)
    return field(X)


def test_the_gap_of_a_half_is_its_least_value_or_none_where_signs_differ():
    value = torch.rand(3, 3, 3, 400) - torch.rand(400)
    value[:, :, :, 0] = 0.0
    found = decode.gaps(value)
    for number, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
        eight = value[i : i + 2, j : j + 2, k : k + 2].flatten(0, 2)
        mixed = (eight > 0).any(0) & ~(eight > 0).all(0)
        assert torch.equal(found[number][~mixed], eight.abs().amin(0)[~mixed]) and (found[number][mixed] <= 0).all()


def test_what_is_linear_bends_nowhere_and_a_parabola_by_its_curvature():
    n = torch.randn(50, 3)
    assert decode.bend(around_a_cell(lambda X: (X * n).sum(-1) + 0.3, 50)).max() < 1e-6
    bent = around_a_cell(lambda X: (n.abs() * X**2).sum(-1), 50)
    assert torch.allclose(decode.bend(bent), 2 * n.abs().sum(1) / 8, atol=1e-5)
    middle = (n.abs() * 0.25).sum(1)  # between corners 0 and 1, by how much it lies below the line
    assert torch.allclose(decode.bend(bent), middle, atol=1e-5)


@pytest.mark.parametrize(("bends", "thinnest"), [(decode.BENDS, 0.25), (4.0, 0.0)])
def test_no_sheet_between_corners_can_hide_however_it_is_turned(bends, thinnest):
    generator = torch.Generator().manual_seed(0)
    n = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=generator), dim=1)
    n[:2000] = torch.eye(3)[torch.randint(3, (2000,), generator=generator)]  # along the grid, the hardest to see
    inside = torch.rand(20_000, 3, generator=generator)  # a point of the sheet, in the first half
    half = (thinnest + 1e-3) / 2  # of its thickness; 0.5 is a cell of the finest level
    value = around_a_cell(lambda X: half - ((X - inside) * n).sum(-1).abs(), 20_000)
    gap = decode.gaps(value)[0]
    assert (gap > 0).any() and (gap < bends * decode.bend(value))[gap > 0].all()


@pytest.mark.parametrize("clip", [1 / decode.BAND, 1.5, 3.0, 100.0])  # cells
def test_no_ball_that_is_promised_can_hide(clip):
    r = max(3**0.5 / 4, 3**0.5 / 2 - min(decode.BAND * clip, 3**0.5 / 4))  # smallest() where this level decides
    center = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    center[0] = 0.5
    value = around_a_cell(lambda X: ((r - (X - center).norm(dim=-1)) / clip).clamp(-1, 1), 20_000)
    gap = decode.gaps(value)[0]
    assert gap[0] > 0 and (gap < 1.9 * decode.bend(value))[gap > 0].all()


def test_bends_are_believed_only_where_the_clip_leaves_them():
    assert decode.bends_show(7, 8, 0.05) and not decode.bends_show(6, 8, 0.05)
    assert decode.bends_show(8, 9, 0.015) and not decode.bends_show(7, 8, 0.015)


# -- a field that was trained ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A small network fitted to a clipped distance: its slope exceeds 1 / clip, and it is nowhere quite flat."""
    torch.manual_seed(0)
    frequencies = 2.0 ** torch.arange(5)
    net = torch.nn.Sequential(
        torch.nn.Linear(33, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)
    )

    def field(X):
        turned = (X[:, :, None] * frequencies).flatten(1)
        return net(torch.cat([X, turned.sin(), turned.cos()], 1))[:, 0]

    target, optimiser = clipped(MUG, 0.05), torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(300):
        X = torch.rand(4096, 3) * 2.1 - 1.05
        loss = (field(X) - target(X)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    return field


def test_exact_is_dense_on_a_trained_field(trained):
    V, F, facts = decode.decode(trained, 7, exact=True, clip=0.05)
    V2, F2, dense = decode.dense(trained, 7)
    assert facts["cells"] == dense["cells"] and torch.equal(F, F2)
    assert (V - V2).abs().max() < 1e-4  # a network's last digits depend on how many points it is given
    sound(V, F)
    assert facts["of_dense"] < 0.25


def test_to_ask_only_where_it_bends_finds_as_much_for_less_with_a_margin(trained, monkeypatch):
    found = {}
    for bends in (math.inf, decode.BENDS, 1.0):
        monkeypatch.setattr(decode, "BENDS", bends)
        found[bends] = decode.decode(trained, 7, exact=True, clip=0.05)[2]
    assert len({facts["cells"] for facts in found.values()}) == 1
    many, fewer, fewest = (facts["queries"] for facts in found.values())
    assert fewest < fewer < many


@pytest.mark.slow
def test_exact_is_dense_on_a_trained_field_at_depth_8(trained):
    V, F, facts = decode.decode(trained, 8, exact=True, clip=0.05)
    V2, F2, dense = decode.dense(trained, 8)
    assert facts["cells"] == dense["cells"] and torch.equal(F, F2) and (V - V2).abs().max() < 1e-4
    assert facts["per_corner"] < 4.1


def test_fast_on_a_trained_field_is_closed_and_part_of_exact(trained):
    V, F, facts = decode.decode(trained, 7, clip=0.05)
    sound(V, F)
    V2, _, exact = decode.decode(trained, 7, exact=True, clip=0.05)
    assert 0.99 * exact["cells"] < facts["cells"] <= exact["cells"] and facts["queries"] < exact["queries"]
    off = torch.cdist(V[::50], V2, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert off.max() < 1e-4


# -- fields that are none ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("depth", [3, 6])
def test_an_empty_field_has_no_surface(depth, exact):
    V, F, facts = decode.decode(lambda X: -torch.ones(len(X)), depth, exact=exact)
    assert V.shape == (0, 3) and F.shape == (0, 3) and facts["cells"] == 0 and facts["per_corner"] == facts["queries"]


@BOTH
@pytest.mark.parametrize("depth", [3, 6])
def test_a_full_field_is_the_box(depth, exact):
    V, F, facts = decode.decode(lambda X: torch.ones(len(X)), depth, exact=exact)
    volume, area, euler = sound(V, F)
    assert euler == 2 and facts["cut"]
    assert volume == pytest.approx((2 * BOX) ** 3, rel=0.01) and area == pytest.approx(6 * (2 * BOX) ** 2, rel=0.01)


@BOTH
def test_what_the_box_cuts_is_closed_there(exact):
    field = union(ball(0.5, (1.0, 0, 0)), ball(0.3, (-1.0, 1.0, -1.0)), ball(0.2))
    V, F, facts = decode.decode(clipped(field, 0.05), 7, exact=exact, clip=0.05)
    _, _, euler = sound(V, F)
    assert euler == 6 and facts["cut"] and V.abs().max() < BOX + 1e-4
    V2, F2, _ = decode.dense(clipped(field, 0.05), 7)
    assert torch.equal(V, V2) and torch.equal(F, F2)


def test_zeros_on_corners_give_no_degenerate_face():
    h = 2 * BOX / 64
    for field in (box((20 * h, 10 * h, 4 * h)), lambda X: (20 * h - X.abs().sum(1)) / 3**0.5, lambda X: 0 * X[:, 0]):
        exact = lambda X, field=field: (field(X) / h * 1024).round() / 1024 * h  # noqa: E731 (zeros are exact)
        V, F, facts = decode.decode(exact, 6)
        sound(V, F)
        assert len(F) > 1000 or facts["cells"] == 0


@pytest.mark.parametrize("start", [None, 5])
def test_white_noise_is_manifold(start):
    V, F, facts = decode.decode(noise, 5, start=start, clip=1e-3)
    sound(V, F)
    V2, F2, _ = decode.dense(noise, 5)
    assert facts["cells"] > 0.9 * 32**3 and torch.equal(V, V2) and torch.equal(F, F2)


def test_a_field_that_crosses_everywhere_is_still_right():
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(20, 3, generator=generator) * 12

    def untrained(X):
        return (X @ waves.T).sin().sum(1) / 5

    V, F, facts = decode.decode(untrained, 6, exact=True, clip=0.05)
    V2, F2, _ = decode.dense(untrained, 6)
    assert torch.equal(V, V2) and torch.equal(F, F2) and facts["cut"]
    sound(V, F)


@BOTH
def test_a_network_that_was_never_trained_has_closed_surfaces_and_exact_all_of_them(exact):
    torch.manual_seed(0)
    model = vae.build("tiny").eval().requires_grad_(False)
    context = model.decode(torch.randn(1, 64, model.channels))

    def field(X):
        return model.query(context, X[None])[0] - middle

    middle = model.query(context, torch.rand(1, 4096, 3) * 2 - 1).median()  # so that it is crossed
    V, F, facts = decode.decode(field, 6, exact=exact, clip=0.05)
    _, _, dense = decode.dense(field, 6)
    sound(V, F)
    assert facts["queries"] <= dense["queries"]
    assert facts["cells"] == dense["cells"] if exact else 0 < facts["cells"] <= dense["cells"]


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="depth = 12"):
        decode.decode(torus, 12)
    with pytest.raises(ValueError, match="clip"):
        decode.decode(torus, 4, clip=0)


# -- where it runs -----------------------------------------------------------------------------------------------------


def test_it_needs_torch_and_numpy_only():
    blocked = "igl embreex vtk vtkmodules pyvista trimesh scipy skimage pandas matplotlib IPython"
    code = f"""
import sys
for name in {blocked.split()!r}: sys.modules[name] = None
from lib import decode
V, F, facts = decode.decode(lambda X: 0.5 - X.norm(dim=1), 5)
print(len(V) - len(F) // 2)
"""
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout.strip() == "2", result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@BOTH
def test_a_gpu_finds_the_same(exact):
    V, F, facts = decode.decode(clipped(MUG, 0.05), 7, exact=exact, clip=0.05, device="cuda")
    V2, F2, _ = decode.decode(clipped(MUG, 0.05), 7, exact=exact, clip=0.05)
    assert V.device.type == "cuda" and facts["gpu_allocated_gib"] > 0
    assert torch.equal(F.cpu(), F2) and (V.cpu() - V2).abs().max() < 1e-5
