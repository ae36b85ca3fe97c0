"""Other tools that close meshes, each run by bench_watertight.py in a process of an environment that has them.

python3 -m venv PEERS && PEERS/bin/pip install point-cloud-utils pymeshlab mesh2sdf    # pymeshlab is GPL
python tests/bench_watertight.py MESHES --dataset D --peers PEERS/bin/python
"""

import json
import sys
import time

import numpy as np


def point_cloud_utils(V, F, resolution):
    import point_cloud_utils as pcu

    return pcu.make_mesh_watertight(V, F, resolution=100_000 * (resolution / 256) ** 2, seed=0)


def alpha_wrap(V, F, resolution):
    """Alpha is one, the offset half of 1/resolution of the box's diagonal."""
    import pymeshlab

    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(V, F))
    alpha, offset = (pymeshlab.PercentageValue(100 * x / resolution) for x in (1, 0.5))
    meshes.generate_alpha_wrap(alpha=alpha, offset=offset)
    return meshes.current_mesh().vertex_matrix(), meshes.current_mesh().face_matrix()


def mesh2sdf(V, F, resolution):
    """Its box is [-1, 1]: the mesh is put into 95% of that."""
    import mesh2sdf

    mesh = mesh2sdf.compute(0.95 * V, F, resolution, fix=True, level=2 / resolution, return_mesh=True)[1]
    return np.asarray(mesh.vertices) / 0.95, np.asarray(mesh.faces)


if __name__ == "__main__":
    name, source, target, resolution = sys.argv[1:]
    __import__({"alpha_wrap": "pymeshlab"}.get(name, name))  # not counted
    came = np.load(source, allow_pickle=False)
    start, wall = time.process_time(), time.perf_counter()
    V, F = globals()[name](came["V"], came["F"].astype(np.int32), int(resolution))
    seconds = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    np.savez(target, V=np.asarray(V, np.float64), F=np.asarray(F, np.int64))
    print(json.dumps(seconds))
