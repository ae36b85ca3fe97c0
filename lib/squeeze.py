"""Files in fewer bytes, none lost: what is alike is put together, then xz; what would not come back exactly is left.

PNGs and compressed .npz stay as they are: to be made again to the bit they would need the same zlib for ever.
"""

import io
import json
import lzma
import re
import struct
import zipfile

import numpy as np

LEAST = 0.98  # of its size must a file come to, to be worth the trouble
PRESET = 1  # of xz: 6 takes 1.6 times as long for 4% less


def squeeze(name: str, data: bytes) -> tuple[str, bytes]:
    """How a file of this name is kept: the ending that says so, and the bytes. `expand` undoes it."""
    kinds = {".obj": ".mesh.xz", ".npz": ".planes.xz"}
    for kind in (kinds.get(name[name.rfind(".") :]), ".xz"):
        if kind and not name.endswith((".png", ".glb", ".jpg")):
            made = FORWARD[kind](data)
            if made is not None and len(made := xz(made)) < LEAST * len(data) and expand(kind, made) == data:
                return kind, made
    return "", data


def expand(ending: str, data: bytes) -> bytes:
    """The file as it was."""
    return BACK[ending](lzma.decompress(data)) if ending else data


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC64, preset=PRESET)


# -- triangles as text ------------------------------------------------------------------------------------------------


def mesh_apart(data: bytes) -> bytes | None:
    """An .obj as lib.mesh writes it: differences of its vertices in units of their last digit, and of its indices."""
    first = re.match(rb"v -?\d+\.(\d+) ", data)
    middle = data.find(b"\nf ") + 1
    if not first or not middle or not data.endswith(b"\n"):
        return None
    decimals = len(first[1])
    try:
        V = np.fromstring(data[:middle].replace(b"v", b" "), sep=" ").reshape(-1, 3)
        F = np.fromstring(data[middle:].replace(b"f", b" "), dtype=np.int64, sep=" ").reshape(-1, 3)
    except ValueError:
        return None
    units = np.rint(V * 10.0**decimals)
    if not len(V) or not len(F) or not np.abs(units).max() < 2**30 or F.max() >= 2**30:
        return None
    steps = np.diff(units.astype(np.int32), axis=0, prepend=np.int32(0))
    turns = np.diff(F.astype(np.int32).ravel(), prepend=np.int32(0)).reshape(-1, 3)  # from corner to corner
    return struct.pack("<III", len(V), len(F), decimals) + planes(zigzag(steps)) + planes(zigzag(turns))


def mesh_together(data: bytes) -> bytes:
    vertices, faces, decimals = struct.unpack_from("<III", data)
    steps = unplanes(data[12 : 12 + 12 * vertices], vertices)
    turns = unplanes(data[12 + 12 * vertices :], faces)
    V = np.cumsum(steps, axis=0, dtype=np.int64) / 10.0**decimals + 0.0  # no -0.0
    F = np.cumsum(turns.ravel(), dtype=np.int64).reshape(-1, 3)
    out = io.BytesIO()
    for row, values in ((f"v %.{decimals}f %.{decimals}f %.{decimals}f\n", V), ("f %d %d %d\n", F)):
        for part in (values[i : i + 50_000] for i in range(0, len(values), 50_000)):
            out.write((row * len(part) % tuple(part.ravel().tolist())).encode())
    return out.getvalue()


def zigzag(D: np.ndarray) -> np.ndarray:
    """Small numbers of either sign as small numbers."""
    return ((D << 1) ^ (D >> 31)).view(np.uint32)


def planes(A: np.ndarray) -> bytes:
    """Column by column, bytes of the same significance together."""
    return np.ascontiguousarray(A.T).view(np.uint8).reshape(A.shape[1], -1, 4).transpose(0, 2, 1).tobytes()


def unplanes(data: bytes, count: int) -> np.ndarray:
    A = np.frombuffer(data, np.uint8).reshape(3, 4, count).transpose(0, 2, 1)
    A = np.ascontiguousarray(A).view(np.uint32)[..., 0].T
    return ((A >> 1) ^ -(A & 1).astype(np.int32)).astype(np.int32)


# -- arrays -----------------------------------------------------------------------------------------------------------


def arrays_apart(data: bytes) -> bytes | None:
    """An .npz that is not compressed: of each array the bytes of the same column and significance together."""
    pieces = found(data)
    if not pieces:
        return None
    out = bytearray(data)
    for start, rows, width in pieces:
        block = np.frombuffer(data, np.uint8, rows * width, start)
        out[start : start + rows * width] = block.reshape(rows, width).T.tobytes()
    head = json.dumps(pieces).encode()
    return struct.pack("<I", len(head)) + head + bytes(out)


def arrays_together(data: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", data)
    out = bytearray(data[4 + size :])
    for start, rows, width in json.loads(data[4 : 4 + size]):
        block = np.frombuffer(bytes(out[start : start + rows * width]), np.uint8)
        out[start : start + rows * width] = block.reshape(width, rows).T.tobytes()
    return bytes(out)


def found(data: bytes) -> list[tuple[int, int, int]]:
    """Where arrays lie in an .npz: start, rows and bytes a row of each."""
    pieces = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    return []
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, kind = header[version](file)
                    head = file.tell()
                name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
                width = (shape[-1] if shape else 1) * kind.itemsize
                if width and info.file_size - head >= width:
                    start = info.header_offset + 30 + name + extra + head
                    pieces.append((start, (info.file_size - head) // width, width))
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, NotImplementedError, struct.error):
        return []
    return pieces


FORWARD = {".xz": lambda data: data, ".mesh.xz": mesh_apart, ".planes.xz": arrays_apart}
BACK = {".xz": lambda data: data, ".mesh.xz": mesh_together, ".planes.xz": arrays_together}
ENDINGS = (".mesh.xz", ".planes.xz", ".xz", "")  # the longest first
