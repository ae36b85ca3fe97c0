"""The demo's meshes, made by code: twelve families of everyday things, as many as you like from a seed, some broken."""

import argparse
import itertools
import zlib
from pathlib import Path

import joblib
import numpy as np
import trimesh
from trimesh.transformations import translation_matrix

from lib.solids import (
    PAINTS,
    PALE,
    ball,
    block,
    circle,
    crockery,
    curve,
    labelled,
    lathe,
    mirrored,
    painted,
    plate,
    polar,
    put,
    rectangle,
    spun,
    timber,
    torus,
    tube,
    vessel,
)

# Modelled in centimetres, Y up, facing +Z; written in metres, standing on y = 0.
# A family gives rows (paint, mesh, mesh ...), one by one, or in a list where all of it turns at the end.

METALS = ["#c9a24b", "#9aa5ad", "#b87048", "#6d7680", "#d4cfc4"]
GLASS = ["#3f7d62", "#8a4f2a", "#9cc9cf", "#3d62a0", "#c8dccb", "#b9737f"]
BRASS, CHROME, DARK, GLOW, LEAF, CORK = "#c9a24b", "#d4cfc4", "#34363c", "#fff1b8", "#5f9463", "#d3a96f"
SIDEWAYS, FORWARD = (1, 0, 0), (0, 0, 1)  # axes to turn about


# Families ------------------------------------------------------------------------------------------------------------


def turned(rows, turn, axis=(0, 1, 0), at=(0, 0, 0)):
    """The rows, turned and moved as one, see `put`."""
    return [(paint, *(put(mesh, at, turn, axis) for mesh in meshes)) for paint, *meshes in rows]


def chair(rng):
    """Splayed legs, a seat, perhaps a cushion and arms; the back has slats, spindles or one panel."""
    width, depth, seat, back = rng.uniform((38, 38, 42, 34), (50, 46, 48, 58))
    lean, bow, splay, corner = rng.uniform((3, 1, 0, 2), (10, 5, 5, 14))
    wood, cloth, count = timber(rng), rng.choice(PAINTS), rng.integers(2, 5)
    frame = wood if rng.random() < 0.7 else rng.choice(PAINTS)
    section = rectangle(2, 2, 0.5) if rng.random() < 0.5 else None
    x, z = width / 2 - 4, depth / 2 - 4

    def behind(across, up):
        """A point of the back, `across` in -1 to 1, `up` in 0 to 1."""
        return across * x, seat + up * back, -z - lean * up - bow * up * (1 - across**2)

    def rail(up, wide, thick, reach=1.0):
        return tube([behind(s, up) for s in np.linspace(-reach, reach, 14)], 1, rectangle(wide, thick, 0.45 * thick))

    legs = mirrored(tube([(x + splay, 0, z + splay), (x, seat + 1, z)], (1.3, 2), section), "xz")
    posts = mirrored(tube([(x, seat + 1, -z), behind(1, 1)], (1.9, 1.4), section))
    yield frame, *legs, *posts
    yield wood, block((width, 3.5, depth), (0, seat, 0), 1.2, corner)
    yield wood, rail(0.96, 7, 2.2, 1.12)
    match rng.integers(3):
        case 0:
            yield wood, *(rail(up, 3.5, 1.4) for up in np.linspace(0.3, 0.78, count))
        case 1:
            spots = np.linspace(-0.78, 0.78, 2 * count + 1)
            yield wood, *(tube([(s * x, seat + 2, -z + 1), behind(s, 0.95)], (0.9, 0.7)) for s in spots)
        case 2:
            yield cloth, rail(0.55, 0.5 * back, 1.6)
    if rng.random() < 0.5:
        yield cloth, block((width - 3, 4.5, depth - 3), (0, seat + 2.6, 0), 2.2, corner)
    if rng.random() < 0.35:
        arm = curve([(x, seat + 21, -z - 3), (x + 3, seat + 23, 0), (x + 1, seat + 22, z)], 16)
        yield wood, *mirrored(tube(arm, 1, rectangle(2, 4, 0.9)))
        yield frame, *mirrored(tube([(x, seat + 1, 0.7 * z), (x + 2, seat + 22, 0.7 * z)], 1.1))


def table(rng):
    """A round or oblong top on four legs, a turned pedestal, trestles or hairpins; often with a bowl of fruit."""
    width, height, thick, share, corner = rng.uniform((80, 42, 2.5, 0.5, 1), (150, 78, 5, 0.7, 12))
    wood, is_round = timber(rng), rng.random() < 0.4
    paint = wood if rng.random() < 0.5 else rng.choice(PAINTS)
    depth, corner = (width, width / 2) if is_round else (share * width, corner)
    x, z = np.array([width, depth]) * (0.3 if is_round else 0.42)
    yield wood, block((width, thick, depth), (0, height, 0), 1, corner)
    match rng.integers(4):
        case 0:
            leg = tube([(1.06 * x, 0, 1.06 * z), (x, height + 1, z)], (1.6, 3.2), rectangle(2, 2, 0.4))
            yield paint, block((2 * x, 6, 2 * z), (0, height - 5.5, 0), 0.6, 2), *mirrored(leg, "xz")
        case 1:
            stem = curve([(5, 0.05), (6, 0.2), (3, 0.45), (4.5, 0.75), (3, 0.9), (9, 1.01)], 40) * (1, height)
            foot = tube(curve([(2, 16), (0.2 * depth, 9), (0.36 * depth, 2)], 16), np.linspace(3, 1.9, 16))
            yield paint, lathe(stem), *spun(foot, rng.integers(3, 6), 90)
        case 2:
            strut = tube([(x, 0, z), (0.9 * x, height + 1, -0.7 * z)], 1.4, rectangle(2.4, 3, 0.5))
            beam = tube([(-x, 0.5 * height), (x, 0.5 * height)], 1, rectangle(5, 2.4, 0.5))
            yield paint, beam, *mirrored(strut, "xz")
        case 3:
            bends = np.array([(1, height + 1, -8), (1.1, 3, -1), (1.1, 0.6, 0), (1.1, 3, 1), (1, height + 1, 3)])
            pin = curve(bends * (x, 1, 1) + (0, 0, z), 60)
            yield DARK, *mirrored(tube(pin, 0.7), "xz")
    if rng.random() < 0.6:
        at = np.array([rng.uniform(-0.4, 0.4) * x, height + thick - 0.2, 0])
        yield rng.choice(PALE), vessel(curve([(4, 0), (9, 3), (13, 8)], 16), 0.8, at)
        spots = [(5.2, 5.4, 0), (-5.2, 5.4, 0), (0, 5.4, 5.2), (0, 5.4, -5.2), (0, 9, 0)]
        yield rng.choice(["#f4a259", "#d1495b", "#8cb369"]), *(ball(3.9, at + spot, 0.95) for spot in spots)


def lamp(rng):
    """A turned foot, a slim stem or a tripod under a shade, which is cloth without thickness or a thin wall."""
    style, height, radius, belly = rng.integers(3), *rng.uniform((22, 11, 6), (36, 17, 10))
    paint, trim, metal = rng.choice(PAINTS), rng.choice(PAINTS + PALE), rng.choice(METALS)
    height *= (1, 1.3, 1.5)[style]
    tall, top = radius * rng.uniform((0.9, 0.45), (1.4, 0.95))
    low, sag = height - 0.15 * tall, rng.choice([0, 0, -0.12, 0.1]) * radius
    shade = curve([(radius, low), ((radius + top) / 2 + sag, low + tall / 2), (top, low + tall)], 14)
    spoke = tube([(0, height + 5.5), (top, low + tall)], 0.25)
    yield metal, torus(radius, 0.35, (0, low, 0)), torus(top, 0.35, (0, low + tall, 0)), *spun(spoke, 3)
    if rng.random() < 0.6:
        yield trim, lathe(shade, ends="open")
    else:
        yield trim, lathe([*shade, *(shade - (0.5, 0))[::-1]], ends="join")
    if style == 0:
        foot = curve([(0.6, 0), (1, 0.3), (0.35, 0.75), (0.3, 0.85)], 40) * (belly, height)
        yield paint, lathe(foot)
        yield metal, lathe([(0.75 * belly, 0), (0.7 * belly, 1.2)])
    elif style == 1:
        yield metal, lathe([(8.6, 0), (9, 0.5), (8.6, 1.5), (2, 2.6), (1.4, 4)])
        beads = np.linspace(0.3, 0.7, rng.integers(1, 4)) * height
        yield paint, *(ball(rng.uniform(1.6, 3.6), (0, y, 0)) for y in beads)
    else:
        yield timber(rng), *spun(tube([(13, 0), (1.5, height)], (0.9, 1.3)), 3, 90)
        yield metal, lathe([(3, height - 2), (3, height + 1)])
    yield metal, tube([(0, (0.8, 0.05, 0.98)[style] * height), (0, height + 6)], 0.8)
    yield GLOW, ball(3.2, (0, height + 8, 0), 1.2)


def mug(rng):
    """A printed cup with a handle, sometimes with coffee and a saucer."""
    radius, height, foot, belly = rng.uniform((3.4, 7, 0.65, 0.92), (4.8, 12, 1.0, 1.12))
    (ink, other), paper = rng.choice(PAINTS, 2, replace=False), rng.choice(PALE)
    reach, high, low = rng.uniform((1.6, 0.76, 0.2), (1.9, 0.88, 0.32))
    side = curve([(foot * radius, 0.5), (belly * radius, 0.45 * height), (radius, height)], 24)
    grip = [(0.92, high), (0.55 + reach / 2, high), (reach, 0.55), (0.5 + reach / 2, low), (0.6 + 0.3 * foot, low)]
    handle = tube(curve(grip, 40) * (radius, height), rng.uniform(0.45, 0.65), rectangle(2.6, 1.7, 0.8))
    yield crockery(rng, ink, paper), vessel([(foot * radius - 0.5, 0), *side], 0.4)
    yield rng.choice([ink, paper]), put(handle, turn=-35)
    if rng.random() < 0.6:
        r = np.interp(0.8 * height, side[:, 1], side[:, 0]) - 0.3
        yield "#5a3825", lathe([(r, 0.78 * height), (r, 0.8 * height)])
    if rng.random() < 0.4:
        dish = curve([(4, -0.9), (0.8 * radius + 3, -0.4), (radius + 4.2, 0.9)], 16)
        yield rng.choice([other, paper]), vessel(dish, 0.4)


def cogwheel(teeth, pitch, thick, bore, holes=()):
    """A plate with teeth of flat tips and slanted flanks about the circle of radius `pitch`, one of them along x."""
    angles = np.arange(16 * teeth) * np.pi / 8 / teeth
    radius = pitch * (1 + 2 / teeth * np.clip(1.7 * np.cos(teeth * angles) + 0.1, -1, 1))
    return plate(polar(radius, angles), thick, [circle(bore, n=32), *holes], 0.4 * pitch / teeth)


def gear(rng):
    """A wheel with a hub and round or kidney windows; often a pinion meshes with it or shares its axis."""
    teeth, pitch, thick, proud = rng.integers(14, 33), *rng.uniform((4, 0.8, 0.4), (6, 1.8, 1.2))
    bore, hub, rim, count = 0.14 * pitch, 0.27 * pitch, 0.82 * pitch * (1 - 2 / teeth), rng.integers(3, 8)
    middle, holes, kind = (hub + rim) / 2, [], rng.random()
    for a in np.arange(count) * 2 * np.pi / count:
        if count > 4:
            holes.append(circle(min(0.36 * (rim - hub), 2.2 * middle / count), polar(middle, a)))
        else:
            arc = np.linspace(a - 2.3 / count, a + 2.3 / count, 24)
            holes.append(np.concatenate([polar(0.95 * rim, arc), polar(1.25 * hub, arc[::-1])]))
    paint, other = rng.choice(METALS, 2, replace=False)
    collar = lathe(rectangle(hub - bore, thick + 2 * proud, 0.15, ((hub + bore) / 2, 0)), ends="join")
    rows = [(paint, cogwheel(teeth, pitch, thick, bore, holes)), (other, put(collar, turn=90, axis=SIDEWAYS))]
    if kind < 0.5:
        few = rng.integers(9, 14)
        small = pitch * few / teeth
        pinion = put(cogwheel(few, small, 1.2 * thick, 0.3 * small), turn=180 - 180 / few, axis=FORWARD)
        rows.append((other, put(pinion, (1.02 * (pitch + small), 0, 0))))
    elif kind < 0.75:
        rows.append((other, put(cogwheel(teeth // 2, 0.45 * pitch, thick, bore), (0, 0, thick))))
    return turned(rows, rng.uniform(15, 60), FORWARD)


def bracket(rng):
    """A steel angle, tee or fork with holes, ribs and bolts; the fork carries a roller."""
    width, length, height, thick, corner, hole = rng.uniform((4, 5, 4.5, 0.5, 0.4, 0.4), (8, 9, 10, 0.9, 1.6, 0.6))
    paint, other, style = rng.choice(METALS + PAINTS), rng.choice(METALS), rng.integers(3)
    x, z, up, away = width / 2 - 1.2, length / 2 - 1.2, 0.7 * height, (length - thick) / 2
    spots = [(x, z), (-x, z), (x, -z), (-x, -z)]
    base = plate(rectangle(width, length, corner), thick, [circle(hole, spot) for spot in spots], 0.1)
    slot = rectangle(0.5 * width, 2 * hole, hole, (0, up))
    pair = [circle(hole, (side * width, up)) for side in (-0.25, 0.25)]
    holes = [circle(0.14 * width, (0, up), 32)] if style == 2 else [slot] if rng.random() < 0.5 else pair
    wall = plate(rectangle(width, height, (corner, corner, 0.15, 0.15), (0, height / 2)), thick, holes, 0.1)
    rows = [(paint, put(base, (0, thick / 2, 0), 90, SIDEWAYS))]
    rows.append((paint, *(put(wall, (0, 0, z)) for z in ((-away,), (0,), (-away, away))[style])))
    if style == 2:
        pin, tyre, w = 0.13 * width, 0.36 * width, 0.8 * away
        wheel = lathe([(pin, -w), (tyre, -w), (0.75 * tyre, 0), (tyre, w), (pin, w)], ends="join")
        axle = lathe([(pin, -0.6 * length), (pin, 0.6 * length)])
        rows += [(colour, put(mesh, (0, up, 0), 90, SIDEWAYS)) for colour, mesh in ((other, wheel), (DARK, axle))]
    else:
        reach, tall, back = (0.7, 0.4)[style] * length, 0.6 * height, (-away, 0)[style]
        outline = np.array([(0, 0), (1, 0), (0.1, 1), (0, 1)]) * (reach, tall)
        rib = plate(outline, 0.7 * thick, [circle(0.14 * min(tall, reach), (0.3 * reach, 0.3 * tall))], 0.08)
        sides = (-width / 5, width / 5) if width > 6 else (0,)
        rows.append((paint, *(put(rib, (side, 0.9 * thick, back), -90) for side in sides)))
    if rng.random() < 0.6:
        head, shank = [(1.8, 0), (1.8, 0.7 / hole), (1.5, 0.85 / hole)], [(0.8, -0.8), (0.8, 0.1)]
        for profile, sides in ((head, 6), (shank, 24)):
            rows.append((other, *(lathe(np.array(profile) * hole, (x, thick, z), n=sides) for x, z in spots)))
    return turned(rows, 90 if style == 2 else 0)


def bottle(rng):
    """Glass in one flowing outline, without thickness or with a wall, a paper label; a cork, a stopper or a cap."""
    radius, height, neck, bulge = rng.uniform((3, 13, 1.0, -0.1), (5, 29, 1.6, 0.3))
    low, slope = rng.uniform((0.25, 0.12), (0.6, 0.3))
    glass, y = rng.choice(GLASS), np.concatenate([np.linspace(0, 0.9, 8), np.linspace(1.2, height, 50)])
    t = np.clip((y / height - low) / slope, 0, 1)
    r = radius * (1 + bulge * np.sin(np.pi * np.clip(y / height / (low + slope), 0, 1)))
    r += (neck - r) * t**2 * (3 - 2 * t)
    r[:8] -= 0.9 - np.sqrt(0.81 - (0.9 - y[:8]) ** 2)  # a rounded foot
    yield labelled(rng, glass, low + 0.02), vessel(np.stack([r, y], axis=1), rng.choice([0, 0.25]))
    yield glass, torus(neck + 0.05, 0.28, (0, height - 0.3, 0))
    match rng.integers(4):
        case 0:
            yield CORK, lathe([(0.8 * neck, -1.5), (1.02 * neck, 1), (0.95 * neck, 1.3)], (0, height, 0))
        case 1:
            yield glass, ball(1.5 * neck, (0, height + 1.2 * neck, 0))
        case 2:
            yield rng.choice(PAINTS), block((2.8 * neck, 1.9, 2.8 * neck), (0, height - 0.2, 0), 0.25, 1.4 * neck)


def shelf(rng):
    """Boards between two sides, filled with books, some leaning, and with pots of green."""
    width, row, depth, thick = rng.uniform((50, 27, 22, 1.6), (95, 36, 30, 3))
    count, foot, wood = rng.integers(2, 6), rng.choice([0, 6]), timber(rng)
    paint = wood if rng.random() < 0.6 else rng.choice(PALE + PAINTS)
    height, inside, free = count * row + thick + foot, width - 2 * thick, row - thick
    yield paint, *mirrored(block((thick, height, depth), ((width - thick) / 2, 0, 0), 0.3))
    floors = foot + row * np.arange(count + 1)
    yield wood, *(block((inside + 1, thick, depth - 0.6), (0, y, 0), 0.3) for y in floors)
    if rng.random() < 0.6:
        yield paint, block((inside + 1, height - foot - 1, 0.8), (0, foot + 0.5, 0.8 - depth / 2), 0.2)
    for floor in floors[:-1] + thick:
        x = 0.4 - inside / 2
        while True:
            kind, deep, tall, thin = rng.uniform((0, 0.6, 0.55, 1.8), (1, 0.85, 0.92, 4.5)) * (1, depth, free, 1)
            wide = 12 if kind < 0.08 else thin + 0.29 * tall if kind < 0.18 else thin
            if x + wide > inside / 2:
                break
            colour, book = rng.choice(PAINTS + PALE[:2]), block((thin, tall, deep), (thin / 2, 0, 0), 0.25)
            if kind < 0.08:  # a plant
                at = np.array([x + wide / 2, floor, 0])
                yield colour, vessel([(3, 0), (4.4, 7), (4.9, 7), (4.9, 8.5)], 0.4, at)
                yield LEAF, *(ball(3.5, at + spot) for spot in rng.uniform((-2, 8, -2), (2, 13, 2), (4, 3)))
            else:
                leans = 0.08 <= kind < 0.18
                yield colour, put(book, (x + 0.28 * tall * leans, floor, 0), 16 * leans, FORWARD)
            x += wide + rng.choice([0.05, 0.05, 0.05, 0.05, 4])


def car(rng):
    """A toy: rounded body, glass cabin, wheels under mudguards, lamps; a load on the roof or a key to wind it up."""
    long, wide, wheel, style = *rng.uniform((11, 5.4, 1.3), (14.5, 6.6, 1.8)), rng.integers(3)
    paint, trim, third = rng.choice(PAINTS, 3, replace=False)
    cab, tall, shift, taper = [(0.6, 2.4, -0.06, 0.74), (0.36, 2.7, 0.04, 0.86), (0.88, 3.0, -0.02, 0.94)][style]
    front, low, lid, shift = long / 2, 0.7 * wheel, taper * cab * long, shift * long
    roof, bumper = low + 2 + tall, low + 0.5
    rows = [(paint, block((long, 2.4, wide), (0, low, 0), 0.8, 1.9))]
    rows.append(("#b9dbe3", block((cab * long, tall, 0.9 * wide), (shift, low + 2, 0), 0.5, 1.3, taper)))
    rows.append((trim, block((1.05 * lid, 0.8, 0.95 * taper * wide), (shift, roof - 0.4, 0), 0.39, 1.2)))
    tyre = lathe(rectangle(0.9, 1.1, 0.4, (wheel - 0.45, 0)), ends="join")
    disc = lathe([(wheel - 0.7, -0.4), (wheel - 0.7, 0.4), (0.3 * wheel, 0.6)])
    guard = tube(circle(wheel + 0.4, n=48)[:25], 1, rectangle(1.5, 0.4, 0.2))
    for colour, mesh, turn in ((DARK, tyre, 90), (CHROME, disc, 90), (trim, guard, 0)):
        rows.append((colour, *mirrored(put(mesh, (0.31 * long, wheel, wide / 2 - 0.1), turn, SIDEWAYS), "xz")))
    rows.append((GLOW, *mirrored(put(ball(0.65, squash=0.7), (front - 0.2, low + 1.5, 0.3 * wide), 90, FORWARD), "z")))
    bar = curve([(front - 0.6, bumper, 0.5 * wide), (front + 0.4, bumper, 0), (front - 0.6, bumper, -0.5 * wide)], 24)
    rows.append((CHROME, *mirrored(tube(bar, 0.35))))
    match rng.integers(3):
        case 0:  # suitcases
            for k, colour in enumerate((third, paint)):
                case = block(np.array([0.55 * lid, 1.3, 0.6 * wide]) * 0.85**k, bevel=0.25, corner=0.4)
                rows.append((colour, put(case, (shift, roof + 0.3 + 1.25 * k, 0), 8 * k)))
        case 1:  # a fir tree
            fir = np.array([(1.4, 0), (0.6, 0.25), (1.1, 0.25), (0.45, 0.5), (0.8, 0.5), (0, 0.8)]) * (1, 0.8 * long)
            rows.append((LEAF, put(lathe(fir), (shift - 0.3 * long, roof + 1.4, 0), -90, FORWARD)))
            rows.append((CORK, tube([(shift - 0.4 * long, roof + 1.4), (shift, roof + 1.4)], 0.3)))
        case 2:
            bow = put(torus(0.8, 0.3), turn=90, axis=SIDEWAYS)
            rows.append((BRASS, *(put(bow, (-front - 2, low + 1.3 + k, 0)) for k in (-0.85, 0.85))))
            rows.append((BRASS, tube([(1 - front, low + 1.3), (-front - 2, low + 1.3)], 0.25)))
    return turned(rows, -90)


def birdhouse(rng):
    """Painted walls with a round or arched door, a pitched roof, a perch, a post, and mostly somebody at home."""
    half, tall, deep, pitch, post = rng.uniform((5.5, 9, 9, 4.5, 12), (8.5, 16, 15, 10, 36))
    (paint, roof, feathers), wood = rng.choice(PAINTS, 3, replace=False), timber(rng)
    paint, door = rng.choice([paint, PALE[0]]), rng.uniform(0.3, 0.4) * half
    arch = rectangle(2 * door, 2.8 * door, (door, door, 0.4, 0.4), (0, 0.62 * tall), 10)
    hole = arch if rng.random() < 0.4 else circle(door, (0, 0.65 * tall), 40)
    gable = [(-half, 0), (half, 0), (half, tall), (0, tall + pitch), (-half, tall)]
    ridge, perch, z, slope = post + tall + pitch, post + 0.28 * tall, deep / 2 - 0.5, np.hypot(half, pitch)
    walls = [put(plate(gable, 1, holes), (0, post, side)) for holes, side in (([hole], z), ((), -z))]
    walls += mirrored(block((1, tall, deep - 1), (half - 0.5, post, 0), 0.15))
    board = block((slope + 3.5, 1.1, deep + 4), (slope / 2 + 1.25, -0.2, 0), 0.3)
    board = put(board, (0, ridge, 0), -np.degrees(np.arctan2(pitch, half)), FORWARD)
    yield paint, *walls
    yield wood if rng.random() < 0.4 else roof, *mirrored(board)
    yield wood, block((2 * half + 2, 1.2, deep + 3), (0, post - 1, 0), 0.3, 0.6)
    yield wood, tube([(0, perch, z), (0, perch, z + 4)], 0.45), tube([(0, 0), (0, post)], (1.4, 1.2))
    yield wood, lathe([(half, 0), (half - 0.3, 1), (1.5, 2.2)])
    if rng.random() < 0.8:
        at = (0, ridge + 2.3, 0) if rng.random() < 0.5 else (0, perch + 2.1, z + 2.8)
        tail = tube([(0, 0.2, -1), (0, 1.1, -3.6)], (0.9, 0.6), rectangle(1.2, 0.5, 0.2))
        bird = [(feathers, ball(1.9, squash=0.95), ball(1.25, (0, 1.7, 0.9)), tail)]
        bird.append(("#f4a259", tube([(0, 1.7, 1.8), (0, 1.6, 2.9)], (0.5, 0.05))))
        bird.append((DARK, *mirrored(ball(0.25, (0.65, 2.1, 1.8)))))
        yield from turned(bird, 25, at=at)


def rocket(rng):
    """A smooth hull in bands of colour, portholes, swept fins it stands on, a nozzle; boosters now and then."""
    height, radius, waist, sweep = rng.uniform((18, 2.8, 0.5, 1.9), (32, 4.8, 0.85, 2.6))
    (paint, trim), pale, fins = rng.choice(PAINTS, 2, replace=False), rng.choice(PALE), rng.integers(3, 6)
    hull = curve([(waist * radius, 0), (radius, 0.38 * height), (0.8 * radius, 0.72 * height), (0, height)], 61)
    cuts = [0, *rng.integers((6, 15, 38), (12, 20, 46)), 60]
    for (low, high), colour in zip(itertools.pairwise(cuts), (pale, trim, pale, paint), strict=True):
        yield colour, lathe(hull[low : high + 1])
    yield trim, ball(0.5, (0, height, 0))
    nozzle = vessel([(0.4 * waist * radius, 0), (0.8 * waist * radius, 2.2)], 0.3)
    yield DARK, put(nozzle, (0, 0.4, 0), 180, FORWARD)
    for share in np.linspace(0.6, 0.42, rng.integers(1, 3)):
        r, y = hull[np.searchsorted(hull[:, 1], share * height)]
        yield CHROME, put(torus(0.36 * radius, 0.35), (0, y, r), 90, SIDEWAYS)
        yield "#9cd3df", put(ball(0.36 * radius, squash=0.4), (0, y, r - 0.1), 90, SIDEWAYS)
    outer = curve([(0.6, 0.36), (0.8 * sweep, 0.14), (sweep, -0.12)], 20) * (radius, height)
    inner = curve([(sweep - 0.25, -0.12), (0.65 * sweep, 0), (0.5, 0.05)], 16) * (radius, height)
    top = [(0.4 * radius, 0.36 * height)]  # inside the hull
    fin = plate(np.concatenate([outer, inner, top])[::-1], 0.7, bevel=0.2)
    yield paint, *spun(fin, fins, 90)
    if rng.random() < 0.4:
        booster = curve([(0.2, 0), (0.36, 0.1), (0.33, 0.3), (0, 0.42)], 24) * (radius, height)
        yield trim, *spun(lathe(booster, (1.2 * radius, 0, 0), n=32), fins, 90 + 180 / fins)


def teapot(rng):
    """A printed belly with a spout, a handle at the side or above, and mostly a lid."""
    radius, height, low, mouth, reach = rng.uniform((6.5, 9, 0.35, 0.45, 1.7), (9, 14, 0.5, 0.6, 1.95))
    (ink, other), paper = rng.choice(PAINTS, 2, replace=False), rng.choice(PALE)
    belly = curve([(0.6, 0.04), (1, low), (0.85, 0.78), (mouth, 1)], 36) * (radius, height)
    yield crockery(rng, ink, paper), vessel([(0.6 * radius - 0.4, 0), *belly], 0.45)
    spout = curve([(0.8, 0.28), (1.25, 0.42), (reach - 0.3, 0.82), (reach, 1.02)], 40) * (radius, height)
    yield paper, tube(spout, np.linspace(2.3, 0.8, 40))
    if rng.random() < 0.6:
        grip = curve([(-0.8, 0.8), (-1.35, 0.95), (-1.7, 0.6), (-0.95, 0.25)], 40) * (radius, height)
        yield ink, tube(grip, 1, rectangle(1.9, 1.3, 0.6))
    else:
        grip = curve([(-0.75, 0.85), (-0.7, 1.45), (0, 1.75), (0.7, 1.45), (0.75, 0.85)], 48) * (radius, height)
        yield BRASS, tube(grip, 0.55)
    if rng.random() < 0.8:
        rim, knob = mouth * radius, rng.uniform(0.9, 1.4)
        lid = curve([(rim + 0.3, 0.2), (0.75 * rim, 1.1), (0, 1.8)], 16)
        yield other, lathe([(rim, -0.3), *lid], (0, height, 0))
        yield ink, ball(knob, (0, height + 2.5, 0))


FAMILIES = (chair, table, lamp, mug, gear, bracket, bottle, shelf, car, birdhouse, rocket, teapot)


# Faults and files ----------------------------------------------------------------------------------------------------

FAULTS = {
    "holed": "faces are missing from the largest part",
    "flipped": "three faces in ten look the wrong way",
    "doubled": "the largest part is there twice, face on face",
    "sheet": "sound, but a part is a surface without thickness, as a shade or a glass is often modelled",
}


def fault(path):
    """What is wrong with a file of ours, a key of FAULTS or "": its name says so."""
    return "".join(Path(path).stem.split("_")[2:])


def standing(meshes):
    """Copies in metres, on y = 0."""
    meshes = [mesh.copy() for mesh in meshes]
    V = np.concatenate([mesh.vertices for mesh in meshes])
    floor = (V.min(axis=0) + V.max(axis=0)) / 2
    floor[1] = V[:, 1].min()
    for mesh in meshes:
        mesh.vertices = ((mesh.vertices - floor) / 100).round(6)
    return meshes


def broken(meshes, how, rng):
    """The meshes, broken in this way."""
    meshes = [mesh.copy() for mesh in meshes]
    largest = max(meshes, key=lambda mesh: mesh.area)
    match how:
        case "holed":
            away = largest.triangles_center - largest.triangles_center[rng.integers(len(largest.faces))]
            away = np.linalg.norm(away, axis=1)
            largest.update_faces(away > np.quantile(away, 0.08))
        case "flipped":
            for mesh in meshes:
                flip = rng.random((len(mesh.faces), 1)) < 0.3
                mesh.faces = np.where(flip, mesh.faces[:, ::-1], mesh.faces)
        case "doubled":
            meshes.append(largest)
    return meshes


def write(target, meshes):
    """The meshes as one file: .glb and .obj keep parts and textures, .ply colours of vertices, .stl the form."""
    scene = trimesh.Scene()
    for k, mesh in enumerate(meshes):  # every part in its own frame, as modelling programs write them
        middle, name = mesh.bounds.mean(axis=0).round(6), f"part_{k:03d}"
        scene.add_geometry(put(mesh, -middle), name, name, transform=translation_matrix(middle))
    if target.suffix == ".ply":
        scene = scene.to_mesh()
        scene.visual = scene.visual.to_color()
    options = {"mtl_name": f"{target.stem}.mtl", "digits": 6} if target.suffix == ".obj" else {}
    scene.export(target, **options)


def make(folder, count=24, seed=0):
    """Write `count` meshes, each the same whatever the count; returns their paths. See `fault` for the broken ones."""
    if count < 1:
        raise ValueError(f"count is {count}: ask for at least one shape")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parallel = joblib.Parallel(-1 if count > 48 else 1)  # a few are made before the first process has started
    return parallel(joblib.delayed(make_one)(folder, index, seed) for index in range(count))


def make_one(folder, index, seed):
    """Write the mesh of this number; returns its path."""
    number, k = divmod(index, len(FAMILIES))
    family = FAMILIES[k].__name__
    rng = np.random.default_rng([seed, zlib.crc32(family.encode()), number])
    parts = [(mesh, paint) for paint, *meshes in FAMILIES[k](rng) for mesh in meshes]
    turn, rest = divmod(k + 5 * number, 4)  # one in four is broken, and every family in every way
    how = tuple(FAULTS)[turn % 3] if rest == 3 else ""
    if not how and not all(mesh.is_watertight for mesh, _ in parts):
        how = "sheet"
    printed = any(isinstance(paint, tuple) for _, paint in parts)  # colours of vertices cannot show it
    plain = ".stl" if family in ("gear", "bracket") else ".glb" if printed else ".ply"
    suffix = (".glb", ".glb", ".obj", ".glb", plain)[(k + number) % 5]
    path = folder / ("_".join(filter(None, [family, f"{number:03d}", how])) + suffix)
    write(path, broken(standing(painted(parts, path.stem)), how, rng))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the meshes go")
    parser.add_argument("--count", type=int, default=24, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other shapes")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.count, arguments.seed)
