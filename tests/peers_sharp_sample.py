"""Distance queries and the published chain of steps, each run by bench_sharp_sample.py in a process of its own.

python3 -m venv PEERS && CPLUS_INCLUDE_PATH=/usr/include/eigen3 PEERS/bin/pip install pysdf fpsample trimesh bpy==5.0.1
and, for more engines, fcpw warp-lang point-cloud-utils open3d    # bpy is GPL; pysdf is built, by g++ and libeigen3-dev
"""

import json
import sys
import time

import numpy as np

REACH = 1.049  # of points anywhere in the box; those near a mesh in [-1, 1] stay below

# -- engines: from a mesh to a function that gives the distance of points, positive inside if it knows the sign -------


def exact(V, F):
    """Ours, as 02 asks when it stores single precision."""
    from lib import signed

    solid = signed.prepare(V, F)
    return lambda P: signed.distance(solid, P)


def ours(V, F):
    """As 02 asks when it stores half precision: far away no more exact than that."""
    from lib import sharp_sample, signed

    solid = signed.prepare(V, F)
    return lambda P: signed.distance(solid, P, sharp_sample.FAR if np.abs(P).max() > REACH else np.inf)


def pysdf(V, F):
    import pysdf

    signed = pysdf.SDF(V.astype(np.float32), F.astype(np.uint32))
    return lambda P: signed(P.astype(np.float32), n_threads=1)  # as ours; else it takes all cores


def fcpw(V, F):
    """Without a sign: what it would need for one is left out."""
    import fcpw

    scene = fcpw.scene_3D()
    scene.set_object_count(1)
    scene.set_object_vertices(np.asfortranarray(V, np.float32), 0)
    scene.set_object_triangles(np.asfortranarray(F, np.int32), 0)
    scene.build(fcpw.aggregate_type.bvh_surface_area, True, False, False)

    def query(P):
        found = fcpw.interaction_3D_list()
        scene.find_closest_points(np.asfortranarray(P, np.float32), np.full(len(P), np.inf, np.float32), found)
        return np.fromiter((one.d for one in found), np.float32, len(P))

    return query


def warp(V, F):
    """On one core: it knows no other way on CPUs."""
    import warp

    @warp.kernel
    def nearest(tree: warp.uint64, P: warp.array(dtype=warp.vec3), distance: warp.array(dtype=float)):
        k = warp.tid()
        found = warp.mesh_query_point_sign_normal(tree, P[k], 10.0)
        where = warp.mesh_eval_position(tree, found.face, found.u, found.v)
        distance[k] = -found.sign * warp.length(where - P[k])

    warp.set_device("cpu")
    corners = warp.array(F.astype(np.int32).ravel(), dtype=int)
    tree = warp.Mesh(warp.array(V.astype(np.float32), dtype=warp.vec3), corners)

    def query(P):
        distance = warp.zeros(len(P), dtype=float)
        warp.launch(nearest, len(P), [tree.id, warp.array(P.astype(np.float32), dtype=warp.vec3), distance])
        return distance.numpy()

    return query


def point_cloud_utils(V, F):
    import point_cloud_utils

    return lambda P: -point_cloud_utils.signed_distance_to_mesh(P, V, F)[0]


def open3d(V, F):
    import open3d

    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(V.astype(np.float32), F.astype(np.uint32))
    return lambda P: -scene.compute_signed_distance(P.astype(np.float32)).numpy()


def ask(engine, mesh, target):
    """Each set of points once; prints seconds to build and to answer (wall, all cores' together), stores distances."""
    with np.load(mesh, allow_pickle=False) as file:
        arrays = dict(file)
    start = time.perf_counter()
    query = globals()[engine](arrays.pop("V"), arrays.pop("F"))
    told, answers = {"build": time.perf_counter() - start}, {}
    query(next(iter(arrays.values()))[:100])  # what is loaded or compiled late
    for name, P in arrays.items():
        before = time.perf_counter(), time.process_time()
        answers[name] = query(P)
        told[name] = time.perf_counter() - before[0], time.process_time() - before[1]
    np.savez(target, **answers)
    print(json.dumps(told))


# -- the chain as it is published, step by step, written from a description of what it does ---------------------------


def published(source, target, count=32768, draws=200_000, angle=15.0):
    """Edges by Blender, points by their number, distances by pysdf, farthest points by fpsample."""
    import bpy
    import fpsample
    import pysdf
    import trimesh

    clock = [(time.perf_counter(), time.process_time())]
    rng = np.random.default_rng(0)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.obj_import(filepath=source)
    shape = bpy.context.selected_objects[0]
    bpy.context.view_layer.objects.active = shape
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_mode(type="EDGE")
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.mesh.edges_select_sharp(sharpness=np.radians(angle))
    bpy.ops.object.mode_set(mode="OBJECT")
    data = shape.data
    chosen = np.zeros(len(data.edges), bool)
    data.edges.foreach_get("select", chosen)
    ends = np.zeros(2 * len(data.edges), np.int32)
    data.edges.foreach_get("vertices", ends)
    ends = ends.reshape(-1, 2)[chosen]
    clock.append((time.perf_counter(), time.process_time()))

    mesh = trimesh.load(source, process=False, force="mesh")
    corner = np.unique(ends)
    sharp = np.c_[mesh.vertices[corner], mesh.vertex_normals[corner]]
    missing = count - len(sharp)
    if missing > 0:
        each = missing // len(ends)
        t = (np.arange(each) + 1) / (each + 1)
        edge = np.r_[np.repeat(np.arange(len(ends)), each), rng.choice(len(ends), missing % len(ends), replace=False)]
        t = np.r_[np.tile(t, len(ends)), rng.random(missing % len(ends))][:, None]
        both = np.c_[mesh.vertices, mesh.vertex_normals]
        sharp = np.r_[sharp, (1 - t) * both[ends[edge, 0]] + t * both[ends[edge, 1]]]
    clock.append((time.perf_counter(), time.process_time()))

    sdf = pysdf.SDF(mesh.vertices, mesh.faces)
    near = np.concatenate([sharp[:, :3] + rng.normal(0, s, (len(sharp), 3)) for s in (0.001, 0.005, 0.007, 0.01)])
    surface, _ = mesh.sample(draws, return_index=True)
    rand = [surface + rng.normal(0, s, surface.shape) for s in (0.001, 0.005)]
    rand = np.concatenate([*rand, rng.uniform(-1.05, 1.05, (draws, 3))])
    arrays = {"sharp_near_surface": np.c_[near, sdf(near)], "rand_points": np.c_[rand, sdf(rand)]}
    clock.append((time.perf_counter(), time.process_time()))

    P, face = mesh.sample(draws, return_index=True)
    P = np.c_[P, mesh.face_normals[face]]
    arrays["fps_coarse_surface"] = P[fpsample.bucket_fps_kdline_sampling(P[:, :3], count, h=5)][:, None]
    if len(sharp) > count:
        sharp = sharp[fpsample.bucket_fps_kdline_sampling(sharp[:, :3], count, h=5)]
    arrays["fps_sharp_surface"] = sharp[:, None]
    clock.append((time.perf_counter(), time.process_time()))
    np.savez(target, **{key: array.astype(np.float32) for key, array in arrays.items()})
    clock.append((time.perf_counter(), time.process_time()))
    steps = zip(("edges", "sharp points", "distances", "farthest points", "write"), np.diff(clock, axis=0), strict=True)
    print(json.dumps({name: list(spent) for name, spent in steps}))


def chain(source, target):
    """Ours, on the same file."""
    from pathlib import Path

    from lib import mesh, sharp_sample

    clock = [(time.perf_counter(), time.process_time())]
    V, F = mesh.read(source)
    clock.append((time.perf_counter(), time.process_time()))
    points, _ = sharp_sample.sample(V, F)
    clock.append((time.perf_counter(), time.process_time()))
    arrays = sharp_sample.label(V, F, points, "float16", 200_000)
    clock.append((time.perf_counter(), time.process_time()))
    np.savez(target, **arrays)
    sharp_sample.write_points(Path(target).with_suffix(".ply"), points["fps_sharp_surface"][:, 0])
    clock.append((time.perf_counter(), time.process_time()))
    steps = zip(("read", "all points", "distances", "write"), np.diff(clock, axis=0), strict=True)
    print(json.dumps({name: list(spent) for name, spent in steps}))


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    globals()[what](*paths) if what in ("published", "chain") else ask(what, *paths)
