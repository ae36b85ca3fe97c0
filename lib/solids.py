"""Solids and their paint: lathed, swept, bevelled and cut forms; wood, prints and labels on them."""

import itertools

import numpy as np
import trimesh
from PIL import Image, ImageColor
from scipy.interpolate import CubicSpline
from scipy.spatial import Delaunay
from skimage.measure import points_in_poly
from trimesh.transformations import rotation_matrix, translation_matrix
from trimesh.visual import TextureVisuals
from trimesh.visual.material import SimpleMaterial

# Centimetres, Y up. An outline is a closed polygon (n, 2), counter-clockwise. A paint is a colour, or a pair of an
# image and the function that projects it onto a mesh.

WARM = ["#d1495b", "#edae49", "#f4a259", "#e8998d", "#c8553d", "#8e7dbe"]
COOL = ["#2a8c92", "#30638e", "#24476b", "#5b8e7d", "#8cb369", "#6c91c2"]
PAINTS = WARM + COOL
PALE = ["#f7f1e3", "#fdf6ec", "#dfe9ea", "#f6dfd3", "#e3ead7", "#f3e3b3"]
WOODS = [("#d3a96f", "#b5854c"), ("#8f6341", "#6a4529"), ("#e8cd9f", "#d2b07d"), ("#b8734b", "#985536")]


# Solids --------------------------------------------------------------------------------------------------------------


def skin(rings, ends="cap"):
    """The surface through rings of points (n, m, 3); its two ends are `cap`ped, left `open` or `join`ed."""
    rings = np.asarray(rings, dtype=float)
    if ends == "join":
        rings = np.concatenate([rings, rings[:1]])
    n, m = rings.shape[:2]
    a = np.arange(n * m).reshape(n, m)
    b = np.roll(a, -1, axis=1)  # the next point of the same ring
    F = [np.stack([a[:-1], b[1:], b[:-1]], axis=-1), np.stack([a[:-1], a[1:], b[1:]], axis=-1)]
    V = rings.reshape(-1, 3)
    if ends == "cap":
        V = np.concatenate([V, rings[[0, -1]].mean(axis=1)])
        F += [np.stack([a[0], b[0], np.full(m, n * m)], -1), np.stack([b[-1], a[-1], np.full(m, n * m + 1)], -1)]
    mesh = trimesh.Trimesh(V, np.concatenate([f.reshape(-1, 3) for f in F]))  # merges a ring that is one point
    mesh.update_faces(mesh.nondegenerate_faces(height=None))
    mesh.remove_unreferenced_vertices()
    if mesh.is_watertight and mesh.volume < 0:
        mesh.invert()
    return mesh


def put(mesh, at=(0, 0, 0), turn=0.0, axis=(0, 1, 0)):
    """A copy, turned by degrees about an axis through the origin, then moved."""
    return mesh.copy().apply_transform(translation_matrix(at) @ rotation_matrix(np.radians(turn), axis))


def mirrored(mesh, axes="x"):
    """Copies on both sides of the planes across these axes."""
    signs = itertools.product(*((1.0, -1.0) if axis in axes else (1.0,) for axis in "xyz"))
    return [mesh.copy().apply_transform(np.diag([*sign, 1])) for sign in signs]


def spun(mesh, n, first=0.0):
    """n copies round the Y axis."""
    return [put(mesh, turn=first + 360 * k / n) for k in range(n)]


def polar(radius, angles):
    """Points (n, 2) at these angles."""
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=-1)


def circle(radius=1.0, at=(0, 0), n=24):
    """Outline of a regular polygon."""
    return polar(radius, np.arange(n) * 2 * np.pi / n) + at


def rectangle(width, height, corner=0.0, at=(0, 0), steps=3):
    """Outline of a rectangle; `corner` is the radius of its corners, or four from the upper right one on."""
    corner = np.broadcast_to(np.minimum(corner, 0.495 * min(width, height)), 4).repeat(steps + 1)[:, None]
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]).repeat(steps + 1, axis=0)
    angles = (np.arange(4)[:, None] * np.pi / 2 + np.linspace(0, np.pi / 2, steps + 1)).ravel()
    return signs * (np.array([width, height]) / 2 - corner) + polar(corner[:, 0], angles) + at


def curve(points, n=32):
    """n points on the smooth curve through a few."""
    points = np.asarray(points, dtype=float)
    chord = np.cumsum([0, *np.linalg.norm(np.diff(points, axis=0), axis=1)])
    return CubicSpline(chord, points, bc_type="natural")(np.linspace(0, chord[-1], n))


def block(size, at=(0, 0, 0), bevel=0.4, corner=0.0, taper=1.0):
    """A box standing on the point `at`: rims rounded by `bevel`, upright edges by `corner`, top scaled by `taper`."""
    width, height, depth = size
    bevel = min(bevel, 0.49 * min(size))
    turn = np.linspace(0, np.pi / 2, 3 if bevel < 0.5 else 4)
    insets, rise = bevel * (1 - np.sin(turn)), bevel * (1 - np.cos(turn))
    rings, steps = [], 3 if corner <= 2 * bevel else 10
    for i, y in zip([*insets, *insets[::-1]], [*rise, *(height - rise[::-1])], strict=True):
        xz = rectangle(width - 2 * i, depth - 2 * i, max(corner, bevel) - i, steps=steps)
        rings.append(np.insert(xz * (1 + (taper - 1) * y / height), 1, y, axis=1))
    return put(skin(rings), at)


def lathe(profile, at=(0, 0, 0), ends="cap", n=56):
    """A profile of (radius, height) turned round the Y axis; what a smooth curve overshoots the axis is cut off."""
    return put(skin([np.insert(circle(max(r, 0), n=n), 1, y, axis=1) for r, y in profile], ends), at)


def torus(radius, thick, at=(0, 0, 0)):
    return lathe(circle(thick, (radius, 0), 12), at, "join")


def ball(radius, at=(0, 0, 0), squash=1.0):
    return lathe(polar(radius, np.linspace(-np.pi / 2, np.pi / 2, 13)) * (1, squash), at, n=24)


def vessel(profile, wall, at=(0, 0, 0)):
    """A cup: the profile with a flat bottom and a wall; of no thickness, it stays an open sheet."""
    foot, lip = profile[0][1], (profile[-1][0] - wall / 2, profile[-1][1] + wall / 3)
    inside = [(r - wall, max(y, foot + wall)) for r, y in profile[::-1]] + [(0, foot + wall)]
    return lathe([(0, foot), *profile, *([lip, *inside] if wall else [])], at, "open")


def tube(path, radius=1.0, section=None):
    """A section swept along a path in 2-D or 3-D, scaled by `radius` (one or many); its x leaves a flat path."""
    path = np.asarray(path, dtype=float)
    path = np.insert(path, 2, 0, axis=1) if path.shape[1] == 2 else path
    section = circle(n=16) if section is None else section
    side = np.eye(3)[np.argmin(np.ptp(path, axis=0))]
    rings = []
    for point, along, r in zip(path, np.gradient(path, axis=0), np.broadcast_to(radius, len(path)), strict=True):
        along = along / np.linalg.norm(along)
        side = side - (side @ along) * along
        side = side / np.linalg.norm(side)
        rings.append(point + r * section @ np.stack([side, np.cross(side, along)]))
    return skin(rings)


def inset(loop, by):
    """The loop moved to its left: an outline shrinks, a clockwise hole grows. No point may repeat."""
    step = np.roll(loop, -1, axis=0) - loop
    left = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.linalg.norm(step, axis=1, keepdims=True)
    before = np.roll(left, 1, axis=0)
    return loop + by * (before + left) / (1 + (before * left).sum(axis=1, keepdims=True))


def plate(outline, depth, holes=(), bevel=0.15):
    """An outline in x and y with holes, `depth` thick in z; it is convex, or sampled finer than its gaps are wide."""
    loops = [np.asarray(outline, dtype=float), *(hole[::-1] for hole in holes)]
    inner = [inset(loop, bevel) for loop in loops]
    z = np.array([depth / 2, depth / 2 - bevel, bevel - depth / 2, -depth / 2])
    walls = [
        skin([np.insert(ring, 2, h, axis=1) for ring, h in zip((small, loop, loop, small), z, strict=True)], "open")
        for loop, small in zip(loops, inner, strict=True)
    ]
    flat = np.concatenate(inner)
    F = Delaunay(flat).simplices  # counter-clockwise
    middles = flat[F].mean(axis=1)
    F = F[sum(points_in_poly(middles, loop).astype(int) for loop in inner) == 1]
    lids = [trimesh.Trimesh(np.insert(flat, 2, h, axis=1), f) for h, f in ((z[0], F), (z[3], F[:, ::-1]))]
    mesh = trimesh.util.concatenate([*walls, *lids])
    mesh.merge_vertices()
    assert mesh.is_volume, "the outline crosses itself, or is sampled too coarsely for Delaunay"
    return mesh


# Paint ---------------------------------------------------------------------------------------------------------------


def mixed(ink, paper, share):
    """Image of two colours, `share` (rows, columns) of it ink."""
    ink, paper = (np.array(ImageColor.getrgb(colour), dtype=float) for colour in (ink, paper))
    share = np.clip(share, 0, 1)[..., None]
    return Image.fromarray((ink * share + paper * (1 - share)).round().astype(np.uint8))


def timber(rng):
    """Wood: warped rings and fine fibres, periodic, so that a plank may be of any length."""
    light, dark = WOODS[rng.integers(len(WOODS))]
    v, u = np.mgrid[0:160, 0:160] / 160 * 2 * np.pi
    a, b, c = rng.uniform(0, 2 * np.pi, 3)
    warp = 0.9 * np.sin(u + a) + 0.4 * np.sin(2 * u + v + b) + 0.3 * np.sin(u - 2 * v + c)
    fibre = rng.uniform(-1, 1, (160, 1)) + 0.5 * np.repeat(rng.uniform(-1, 1, (160, 20)), 8, axis=1)
    return mixed(dark, light, 0.45 + 0.25 * np.sin(7 * v + 1.4 * warp) + 0.14 * fibre), along_grain


def crockery(rng, ink, paper):
    """A pattern printed round a pot; its lowest rows stay plain, for the inside."""
    v, u = np.mgrid[8:0:192j, 0:20:480j]  # 20 squares round, 8 up
    x, y = (u + 0.5 * (v // 1 % 2)) % 1 - 0.5, v % 1 - 0.5
    patterns = [
        x**2 + y**2 < 0.07,  # dots
        ((3.2 * x) ** 2 + (3.2 * y) ** 2 - 1) ** 3 < (3.2 * x) ** 2 * (3.2 * y) ** 3,  # hearts
        v % 1.6 < 0.7,  # stripes
        (v + np.abs(u % 2 - 1)) % 2 < 0.7,  # zigzags
        ((u // 1 + v // 1) % 2 > 0) & (v > 2) & (v < 6),  # a chequered band
        v < 3.5 + 0.8 * np.sin(u * np.pi / 2.5),  # dipped in a wavy glaze
    ]
    return mixed(ink, paper, patterns[rng.integers(len(patterns))] & (v > 0.3)), around


def labelled(rng, glass, top):
    """Glass with a paper label in front, below the share `top` of its height."""
    v, u = np.mgrid[1:0:256j, -1:1:384j]
    low = rng.uniform(0.08, 0.15)
    t, x = (v - low) / (0.97 * top - low), u / rng.uniform(0.35, 0.6)
    seal = (x**2 + (t - 0.55) ** 2 < 0.09) if rng.random() < 0.5 else (np.abs(x) + np.abs(t - 0.55) < 0.3)
    paper = mixed(rng.choice(PAINTS), rng.choice(PALE), seal | (np.abs(t - 0.13) < 0.05) | (np.abs(t - 0.93) < 0.02))
    on_label = (np.abs(x) < 1) & (t > 0) & (t < 1)
    return Image.fromarray(np.where(on_label[..., None], paper, mixed(glass, glass, t))), around


def along_grain(mesh):
    """Box projection of an image 40 cm wide, its u along the longest side. Returns uv (m, 3, 2) of the corners."""
    order, flat = np.argsort(-mesh.extents), np.abs(mesh.face_normals).argmax(axis=1)
    uv = np.empty((len(mesh.faces), 3, 2))
    for axis in range(3):
        uv[flat == axis] = mesh.triangles[flat == axis][:, :, [k for k in order if k != axis]] / 40
    return uv


def around(mesh):
    """Cylinder projection, the image's middle in front, its lowest row on what looks inwards. Returns uv (m, 3, 2)."""
    T = mesh.triangles
    u = np.arctan2(T[..., 0], T[..., 2]) / (2 * np.pi) + 0.5
    u += (u < 0.5) & (np.ptp(u, axis=1, keepdims=True) > 0.5)  # a face over the seam
    uv = np.stack([u, (T[..., 1] - mesh.bounds[0, 1]) / mesh.extents[1]], axis=-1)
    uv[(mesh.face_normals * mesh.triangles_center * (1, 0, 1)).sum(axis=1) <= 0] = 0.5, 0
    return uv


def painted(parts, name):
    """Textured meshes of pairs (mesh, paint); flat colours share one small palette image, the same in every viewer."""
    colours = list(dict.fromkeys(paint for _, paint in parts if not isinstance(paint, tuple)))
    palette = np.array([[ImageColor.getrgb(colour) for colour in colours]], dtype=np.uint8)
    palette = Image.fromarray(palette.repeat(4, axis=0).repeat(4, axis=1))
    materials, meshes = {}, []
    for mesh, paint in parts:
        if isinstance(paint, tuple):
            image, project = paint
            uv = project(mesh)
        else:
            image, uv = palette, np.full((len(mesh.faces), 3, 2), 0.5)
            uv[..., 0] = (colours.index(paint) + 0.5) / len(colours)
        corners = np.column_stack([mesh.faces.ravel(), uv.reshape(-1, 2).round(5)])
        corners, F = np.unique(corners, axis=0, return_inverse=True)  # a vertex for every uv it has
        material = materials.setdefault(id(image), SimpleMaterial(image=image, name=f"{name}_{len(materials)}"))
        visual = TextureVisuals(uv=corners[:, 1:], material=material)
        V = mesh.vertices[corners[:, 0].astype(int)]
        meshes.append(trimesh.Trimesh(V, F.reshape(-1, 3), visual=visual, process=False))
    return meshes
