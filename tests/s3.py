"""An S3 server that fails, tears and stalls as it is told, its bucket in memory or moto's; nothing leaves this machine.

moto needs python-dateutil < 3, and the notebooks' packages are tried with 4: it has an environment of its own. LIB_S3
may be the address of another server, which is then asked in its place: its bucket called `bucket` is emptied.
"""

import atexit
import contextlib
import functools
import http.client
import os
import re
import subprocess
import tempfile
import threading
import urllib.parse
import venv
from collections.abc import Iterator, MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape, unescape

import pytest

from lib import store

SERVERS = ["here", pytest.param("moto", marks=pytest.mark.slow)]
MOTO = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"]
WHO = "AWS4-HMAC-SHA256 Credential=k/20261127/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"  # not checked
HOP = {"transfer-encoding", "connection", "content-length", "host", "date", "server", "expect"}  # between two machines


class Bucket:
    """What lies there, and what is to go wrong: (method, what) pairs, each met once, in their order for a method."""

    def __init__(self, behind: str = ""):
        self.behind = behind  # address of a server that keeps the objects; else it is done here
        self.objects: MutableMapping[str, bytes] = Behind(behind) if behind else {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.released = threading.Event()  # ends what stalls

    def fault(self, method: str) -> str:
        found = next((fault for fault in self.faults if fault[0] == method), None)
        if found:
            self.faults.remove(found)
        return found[1] if found else ""


@contextlib.contextmanager
def serving(behind: str = "") -> Iterator[tuple[str, Bucket]]:
    """Address of the server and its one bucket, called `bucket`."""
    bucket = Bucket(behind)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        bucket.released.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def faulty(kind: str, monkeypatch) -> Iterator[Bucket]:
    """The bucket of a server of SERVERS, known to lib.store, which does not wait between its tries."""
    pytest.importorskip("obstore")
    with serving(moto() if kind == "moto" else "") as (address, bucket):
        keys = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        for name, value in (keys | {"AWS_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(store, "PAUSE", 0)
        yield bucket


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_):
        pass

    def answer(self, status: int, data: bytes = b"", **headers) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_one(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        key = urllib.parse.unquote(url.path).removeprefix("/bucket").lstrip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        bucket, fault = self.bucket, self.bucket.fault(self.command)
        bucket.asked.append(f"{self.command} {key}")
        if fault == "stall":
            bucket.released.wait(30)
        if fault.isdigit():
            return self.answer(int(fault), b"<Error><Code>SlowDown</Code></Error>")
        if self.command == "PUT":
            body = body[: len(body) // 2] if fault == "torn" else flipped(body) if fault == "flip" else body
        status, data, headers = self.forwarded(body) if bucket.behind else self.done(query, key, body)
        if self.command == "GET" and fault == "flip":
            data = flipped(data)
        if self.command == "GET" and fault == "cut":  # half of what was promised, then silence
            headers["Content_Length"] = str(len(data))
            self.close_connection = True
            data = data[: len(data) // 2]
        self.answer(status, data, **headers)

    def forwarded(self, body: bytes) -> tuple[int, bytes, dict]:
        given = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        status, data, headers = ask(self.bucket.behind, self.command, self.path, body, given)
        told = {name: value for name, value in headers.items() if name.lower() not in HOP}
        return status, data, told | ({"Content-Length": headers["Content-Length"]} if self.command == "HEAD" else {})

    def done(self, query: dict, key: str, body: bytes) -> tuple[int, bytes, dict]:
        bucket, xml = self.bucket, {}
        if self.command == "PUT" and "partNumber" in query:
            bucket.parts[query["uploadId"]][int(query["partNumber"])] = body
            return 200, b"", {"ETag": '"e"'}
        if self.command == "PUT":
            bucket.objects[key] = body
            return 200, b"", {"ETag": '"e"'}
        if self.command == "POST" and "uploads" in query:
            bucket.parts[key] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{escape(key)}</UploadId></InitiateMultipartUploadResult>"
            return 200, text.encode(), xml
        if self.command == "POST" and "uploadId" in query:
            bucket.objects[key] = b"".join(data for _, data in sorted(bucket.parts.pop(query["uploadId"]).items()))
            text = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            return 200, text.encode(), xml
        if self.command == "POST":  # ?delete, of many
            gone = re.findall(r"<Key>.*?</Key>", body.decode())
            for name in gone:
                bucket.objects.pop(name[5:-6], None)
            text = "".join(f"<Deleted>{name}</Deleted>" for name in gone)
            return 200, f"<DeleteResult>{text}</DeleteResult>".encode(), xml
        if self.command == "DELETE":
            bucket.objects.pop(key, None)
            return 204, b"", xml
        if "list-type" in query:
            return 200, self.listing(query).encode(), {"Content_Type": "application/xml"}
        if key not in bucket.objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", xml
        return self.piece(bucket.objects[key])

    def piece(self, data: bytes) -> tuple[int, bytes, dict]:
        headers = {"ETag": '"e"', "Last_Modified": "Fri, 27 Nov 2026 12:00:00 GMT", "Accept_Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not span:
            return 200, data, headers
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        return 206, data[first : last + 1], headers | {"Content_Range": f"bytes {first}-{last}/{len(data)}"}

    def chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def listing(self, query: dict) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        rows, folders = [], set()
        for key, data in sorted(self.bucket.objects.items()):
            rest = key[len(prefix) :]
            if key.startswith(prefix) and delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            elif key.startswith(prefix):
                about = f"<Size>{len(data)}</Size><LastModified>2026-11-27T12:00:00.000Z</LastModified><ETag>e</ETag>"
                rows.append(f"<Contents><Key>{escape(key)}</Key>{about}</Contents>")
        rows += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


# -- moto -------------------------------------------------------------------------------------------------------------


class Behind(MutableMapping):
    """The objects of another server's bucket."""

    def __init__(self, address: str):
        self.address = address
        ask(address, "PUT", "/bucket")
        for key in tuple(iter(self)):
            del self[key]

    def __iter__(self) -> Iterator[str]:
        data = ask(self.address, "GET", "/bucket?list-type=2&max-keys=1000")[1].decode()
        return iter([unescape(key) for key in re.findall("<Key>(.*?)</Key>", data)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: str) -> bytes:
        status, data, _ = ask(self.address, "GET", f"/bucket/{urllib.parse.quote(key)}")
        if status != 200:
            raise KeyError(key)
        return data

    def __setitem__(self, key: str, data: bytes) -> None:
        assert ask(self.address, "PUT", f"/bucket/{urllib.parse.quote(key)}", data)[0] == 200

    def __delitem__(self, key: str) -> None:
        assert ask(self.address, "DELETE", f"/bucket/{urllib.parse.quote(key)}")[0] == 204


def ask(address: str, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple:
    """Status, bytes and headers of one answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {"Authorization": WHO})
        found = connection.getresponse()
        return found.status, found.read(), dict(found.getheaders())


@functools.cache
def moto() -> str:
    """Address of moto's server, in an environment that is made for it and goes with this process."""
    if os.environ.get("LIB_S3"):
        return os.environ["LIB_S3"]
    folder = tempfile.TemporaryDirectory(prefix="moto-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    venv.create(folder.name, with_pip=True)
    python = next(
        Path(folder.name, name) for name in ("bin/python", "Scripts/python.exe") if Path(folder.name, name).exists()
    )
    made = subprocess.run([python, "-m", "pip", "install", "-q", *MOTO], capture_output=True, text=True, timeout=300)
    if made.returncode:
        pytest.skip(f"moto's server cannot be installed, as without a network: {made.stderr.strip()[-300:]}")
    command = [python, "-u", "-m", "moto.server", "-p", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    for line in server.stderr:
        if found := re.search(r"Running on (http://[\d.:]+)", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()  # or it stops when the pipe is full
            return found[1]
    raise AssertionError("moto's server ended as it began")
