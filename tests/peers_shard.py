"""Views read at random from our shards and from those of libraries: core-seconds beside ours, and bytes.

python -m pip install --target PEERS --no-deps pyarrow==26.0.1 litdata==0.2.76 webdataset==1.0.2 lightning-utilities \
    boto3 botocore s3transfer jmespath tifffile braceexpand torchvision==0.28.0
python tests/peers_shard.py PEERS    # what cannot be imported is told and left out
"""

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path += sys.argv[1:2]  # behind what is installed here

from lib import pairs
from lib.dataset import sha256_of
from lib.shard import Member, add
from lib.store import Store

VIEWS, SHAPE, ROUNDS = 120, (256, 384), 9  # DINOv2-small's patches
DATA = [np.random.default_rng(k).normal(size=SHAPE).astype(np.float16) for k in range(VIEWS)]


def ours(folder: Path) -> dict[str, Callable]:
    members = []
    with (folder / "0.tar").open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for k, array in enumerate(DATA):
            packed = io.BytesIO()
            np.savez(packed, features=array)
            data = packed.getvalue()
            add(tar, f"{k}.npz", data)
            start = tar.offset - -(-len(data) // 512) * 512
            members.append(Member(Store(folder), "0.tar", start, len(data), sha256_of(data)))
    return {
        "ours, mapped": lambda k: np.array(pairs.mapped(members[k])),
        "ours, held to its hash": lambda k: pairs.whole(members[k]),
    }


def parquet(folder: Path, rows: int) -> dict[str, Callable]:
    import pyarrow
    import pyarrow.parquet as format

    table, path = pyarrow.table({"x": [array.tobytes() for array in DATA]}), folder / "0.parquet"
    format.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    file = format.ParquetFile(path)

    def read(k: int) -> np.ndarray:
        cell = file.read_row_group(k // rows)["x"][k % rows].as_buffer()
        return np.frombuffer(cell, np.float16).reshape(SHAPE).copy()

    return {f"Parquet, {rows} rows a group": read}


def litdata(folder: Path) -> dict[str, Callable]:
    from litdata.streaming import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=256 * 10**6)
    for k, array in enumerate(DATA):
        writer[k] = {"x": array}
    writer.done()
    writer.merge(1)
    found = StreamingDataset(str(folder))
    return {"litdata": lambda k: np.asarray(found[int(k)]["x"])}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        readers, weight = {}, {}
        makers = {
            "ours": ours,
            "parquet": lambda f: parquet(f, 1),
            "groups": lambda f: parquet(f, 16),
            "litdata": litdata,
        }
        for kind, make in makers.items():
            folder = Path(name, kind)
            folder.mkdir()
            try:
                found = make(folder)
            except ImportError as error:
                print(f"{kind}: {error}")
                continue
            readers |= found
            weight |= dict.fromkeys(found, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        assert all((read(k) == DATA[k]).all() for read in readers.values() for k in range(0, VIEWS, 7))
        spent, order = {kind: [] for kind in readers}, np.random.default_rng(1).permutation(VIEWS)
        for _ in range(ROUNDS):  # in turn: the machine changes, and all are asked the same
            for kind, read in readers.items():
                start = time.process_time()
                for k in order:
                    read(k)
                spent[kind].append(time.process_time() - start)
        for kind, times in spent.items():
            ratio = np.median(times) / np.median(spent["ours, mapped"])
            print(f"{kind:26} {ratio:5.2f} times ours, {weight[kind] / VIEWS:,.0f} bytes a view")
