"""Blender's Cycles at one sample, as bench_render.py asks it to draw: run by a Python that has bpy, and by no other.

It reads a job a line from standard input and answers each with the seconds that it took.
"""

import json
import os
import sys
import tempfile
import time

import bpy
import mathutils
import numpy as np


def prepare(job):
    """A scene with the mesh and the camera, depth and normals switched on, all else as little as Cycles allows."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    with np.load(job["mesh"], allow_pickle=False) as arrays:
        V, F = arrays["V"], arrays["F"]
    mesh = bpy.data.meshes.new("mesh")
    mesh.from_pydata(V.tolist(), [], F.tolist())
    scene.collection.objects.link(bpy.data.objects.new("mesh", mesh))
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.angle = np.radians(job["field_of_view"])
    camera.data.clip_start, camera.data.clip_end = 0.1, 100
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.max_bounces = "CPU", 1, 0
    scene.cycles.use_adaptive_sampling = scene.cycles.use_denoising = False
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BOX", 0.01
    scene.render.use_persistent_data, scene.render.film_transparent = True, True
    scene.render.resolution_x = scene.render.resolution_y = job["size"]
    scene.render.resolution_percentage = 100
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    layer = scene.view_layers[0]
    layer.use_pass_z = layer.use_pass_normal = True
    settings = scene.render.image_settings
    if hasattr(settings, "media_type"):
        settings.media_type = "MULTI_LAYER_IMAGE"
    settings.file_format = "OPEN_EXR_MULTILAYER"
    settings.color_depth, settings.exr_codec = "32", "NONE"
    return scene


def draw(scene, poses, folder):
    for k, pose in enumerate(poses):
        scene.camera.matrix_world = mathutils.Matrix(pose)
        scene.render.filepath = f"{folder}/{k}.exr"
        bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Blender talks
    ready = {}
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            job = json.loads(line)
            if ready.get("job") != job:
                ready = {"job": job, "scene": prepare(job)}
                draw(ready["scene"], job["poses"][:1], folder)  # it builds its tree at the first view
            wall, cpu = time.perf_counter(), time.process_time()
            draw(ready["scene"], job["poses"], folder)
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            answers.write(json.dumps(seconds | {"version": bpy.app.version_string}) + "\n")
            answers.flush()
