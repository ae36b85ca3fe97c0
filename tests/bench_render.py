"""Views a second: what the stage draws with, beside naive PyVista and (--peers PYTHON, one that has bpy) Cycles.

One thread each, in turns, medians; views a second of processor time, so that other work on the machine does not count.
Then where the seconds of an item go, its bytes, and the memory of a process that draws mesh after mesh (--meshes N).
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from lib import camera, paint, picture, render, view  # noqa: E402

FIELD_OF_VIEW = 40.0
VIEWS, ROUNDS = 6, 3


def bumps(faces: int) -> tuple[np.ndarray, np.ndarray]:
    """A closed bumpy torus of about so many faces."""
    n = int(np.sqrt(faces))
    n, m = n, n // 2
    u, v = np.meshgrid(np.arange(n) / n * 2 * np.pi, np.arange(m) / m * 2 * np.pi, indexing="ij")
    r = 0.3 * (1 + 0.1 * np.sin(9 * u) * np.sin(5 * v))
    V = np.stack([(0.65 + r * np.cos(v)) * np.cos(u), r * np.sin(v), (0.65 + r * np.cos(v)) * np.sin(u)], -1)
    k = np.arange(n * m).reshape(n, m)
    a, b, c, d = k, np.roll(k, -1, 0), np.roll(np.roll(k, -1, 0), -1, 1), np.roll(k, -1, 1)
    F = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    return V.reshape(-1, 3), F


def ours(engine: str, V, F, lens, poses):
    """Depth and normals as the stage makes them, without writing."""
    N, look = paint.flat(V, F)[0], render.ENGINES[engine](V, F)

    def go():
        for pose in poses:
            face, depth = look(lens, pose)
            view.encode_depth(lens, depth), view.encode_normal(N[face[face >= 0]])

    return go


def naive(V, F, lens, poses):
    """PyVista as its examples do it: a screenshot of normals as colours, then get_image_depth."""
    import pyvista

    surface = pyvista.PolyData.from_regular_faces(V.astype(np.float32), F)
    surface["rgb"] = ((surface.compute_normals(split_vertices=False).point_normals + 1) * 127.5).astype(np.uint8)
    plotter = pyvista.Plotter(off_screen=True, lighting="none", window_size=(lens.size, lens.size))
    plotter.add_mesh(surface, scalars="rgb", rgb=True, lighting=False)
    plotter.camera.view_angle = FIELD_OF_VIEW

    def go():
        for pose in poses:
            plotter.camera.position, plotter.camera.focal_point = pose[:3, 3], (0, 0, 0)
            plotter.camera.up, plotter.camera.clipping_range = pose[:3, 1], (lens.near, lens.far)
            plotter.screenshot(return_img=True)
            plotter.get_image_depth()

    return go


def timed(go) -> float:
    start = time.process_time()
    go()
    return time.process_time() - start


def cycles(process, path: Path, lens, poses) -> float:
    """Seconds that Cycles takes for depth and normals, written as it likes best; reading them back is not counted."""
    job = {"mesh": str(path), "size": lens.size, "field_of_view": FIELD_OF_VIEW, "poses": poses.tolist()}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())["cpu"]


def compare(faces: int, size: int, process, folder: Path) -> None:
    """Views a second of each way; what has to be built once for a mesh is not counted for anyone."""
    V, F = bumps(faces)
    lens = camera.lens(size, field_of_view=FIELD_OF_VIEW)
    poses = camera.poses(VIEWS, lens.distance)
    path = folder / f"{faces}.npz"
    np.savez(path, V=V, F=F)
    ways = {name: ours(name, V, F, lens, poses) for name in ("opengl", "rays")} | {"naive": naive(V, F, lens, poses)}
    seconds = {name: [] for name in ways} | ({"cycles": []} if process else {})
    for turn in range(ROUNDS + 1):
        for name in seconds:
            spent = cycles(process, path, lens, poses) if name == "cycles" else timed(ways[name])
            seconds[name] += [spent] if turn else []  # the first one warms up
    rate = {name: VIEWS / statistics.median(values) for name, values in seconds.items()}
    chosen = render.choose("auto", False, len(F), size)
    cells = "  ".join(f"{name} {value:6.1f}" for name, value in rate.items())
    against = ", ".join(f"{rate[chosen] / rate[name]:.1f} x {name}" for name in ("naive", "cycles") if name in rate)
    print(f"{len(F):>8,} faces at {size}: {cells}; auto takes {chosen}, {against}", flush=True)


def shares(faces: int = 500_000, size: int = 256) -> None:
    """Where the seconds of an item go when all three maps are made, and its bytes."""
    V, F = bumps(faces)
    thin, coarse = bumps(10_000)
    texture = np.random.default_rng(0).integers(60, 255, (64, 64, 3)).astype(np.uint8)
    skin = paint.skin([(thin, coarse, (np.stack([thin[:, 0], thin[:, 2]], 1), texture))])
    lens = camera.lens(size)
    poses = camera.poses(36, lens.distance)
    drawn = [{} for _ in poses]
    chosen = [render.choose("auto", False, len(f), s) for f, s in ((F, size), (coarse, render.FINER * size))]
    draw_maps = (drawn, V, F, lens, poses, view.MAPS, "world", "flat", render.ENGINES[chosen[0]])
    seconds = {f"maps ({chosen[0]})": timed(lambda: render.draw_maps(*draw_maps))}
    draw_images = (drawn, skin, lens, poses, render.ENGINES[chosen[1]])
    seconds[f"images ({chosen[1]})"] = timed(lambda: render.draw_images(*draw_images))
    files = {}
    seconds["PNG"] = timed(
        lambda: files.update({(k, n): view.png(m) for k, one in enumerate(drawn) for n, m in one.items()})
    )
    told = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    mib = {name: sum(len(data) for key, data in files.items() if key[1] == name) / 2**20 for name in view.MAPS}
    print(f"36 views at {size} of {len(F):,} faces, source of {len(coarse):,}: {told}")
    cells = ", ".join(f"{name} {value:.2f}" for name, value in mib.items())
    print(f"MiB a mesh: {cells}; {sum(mib.values()):.1f} in all (the author's renders and features: 24.9 MB)")


def memory(meshes: int = 500) -> None:
    """What a worker takes after so many meshes, drawn by OpenGL and by rays."""
    process, seen = psutil.Process(), {}
    lens = camera.lens(128)
    poses = camera.poses(4, lens.distance)
    for k in range(meshes + 1):
        V, F = bumps(4000 + 37 * k % 4000)
        skin = paint.skin([(V, F, "gold")])
        for engine in render.ENGINES.values():
            drawn = [{} for _ in poses]
            render.draw_maps(drawn, V, F, lens, poses, view.MAPS, "world", "flat", engine)
            render.draw_images(drawn, skin, lens, poses, engine)
        if k in (meshes // 10, meshes // 2, meshes):
            seen[k] = process.memory_info().rss / 2**20
    told = ", ".join(f"{value:.0f} MiB after {k}" for k, value in seen.items())
    first, *_, last = seen
    print(f"memory over {meshes} meshes: {told}; {(seen[last] - seen[first]) * 1024 / (last - first):.1f} KiB a mesh")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--peers", help="a Python that has bpy: Cycles at one sample is measured too")
    arguments.add_argument("--meshes", type=int, default=500, help="how many the memory is watched over")
    arguments = arguments.parse_args()
    print(
        f"{picture.opengl()}; views a second of processor time, depth and normals, median of {ROUNDS} x {VIEWS} views"
    )
    peers = [arguments.peers, str(Path(__file__).with_name("peers_render.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(peers, **pipes) if arguments.peers else None
    with tempfile.TemporaryDirectory() as folder:
        for faces in (10_000, 100_000, 500_000):
            for size in (256, 512):
                compare(faces, size, process, Path(folder))
    if process:
        process.communicate()
    shares()
    memory(arguments.meshes)
