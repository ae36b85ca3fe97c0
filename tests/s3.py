"""A small S3 server in memory, which fails, tears and stalls as it is told; nothing leaves this machine.

Why not moto's: it needs python-dateutil < 3, and the notebooks' packages are tried with 4. Set LIB_S3 to the address of
one that runs in an environment of its own, and tests/test_store.py asks it too.
"""

import contextlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape


class Bucket:
    """What lies there, and what is to go wrong: (method, what) pairs, each met once, in their order for a method."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
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
def serving() -> Iterator[tuple[str, Bucket]]:
    """Address of the server and its one bucket, called `bucket`."""
    bucket = Bucket()
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
            stored = body[: len(body) // 2] if fault == "torn" else body
            if fault == "flip":
                stored = body[:-1] + bytes([body[-1] ^ 1])
            if "partNumber" in query:
                bucket.parts[query["uploadId"]][int(query["partNumber"])] = stored
            else:
                bucket.objects[key] = stored
            return self.answer(200, ETag='"e"')
        if self.command == "POST" and "uploads" in query:
            bucket.parts[key] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{escape(key)}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(200, text.encode())
        if self.command == "POST" and "uploadId" in query:
            bucket.objects[key] = b"".join(data for _, data in sorted(bucket.parts.pop(query["uploadId"]).items()))
            text = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            return self.answer(200, text.encode())
        if self.command == "POST":  # ?delete, of many
            gone = re.findall(r"<Key>.*?</Key>", body.decode())
            for name in gone:
                bucket.objects.pop(name[5:-6], None)
            text = "".join(f"<Deleted>{name}</Deleted>" for name in gone)
            return self.answer(200, f"<DeleteResult>{text}</DeleteResult>".encode())
        if self.command == "DELETE":
            bucket.objects.pop(key, None)
            return self.answer(204)
        if "list-type" in query:
            return self.answer(200, self.listing(query).encode(), Content_Type="application/xml")
        if key not in bucket.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self.send_object(bucket.objects[key], fault)

    def send_object(self, data: bytes, fault: str) -> None:
        headers = {"ETag": '"e"', "Last_Modified": "Fri, 27 Nov 2026 12:00:00 GMT", "Accept_Ranges": "bytes"}
        status, span = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span:
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == "cut":  # half of what was promised, then silence
            headers["Content_Length"] = str(len(data))
            self.close_connection = True
            data = data[: len(data) // 2]
        self.answer(status, data, **headers)

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
