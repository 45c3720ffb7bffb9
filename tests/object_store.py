"""A server on this machine that speaks the JSON protocol of Google Cloud Storage, in memory.

It knows what gcsfs, TensorStore and Google's own client ask of it: objects are listed, read (whole
or a range), written in one request or several, copied and deleted, with conditions on generations.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object: its content, and the number of the write that made it."""

    data: bytes
    generation: int


class ObjectStore:
    """What buckets hold, by ``bucket/name``; a bucket that is asked for is there.

    Attributes:
      objects: by ``bucket/name``.
      requests: ``(method, bucket/name)`` of all that was asked, for tests to look at.
      refuse: is asked before each request; what it returns, where that is not 0, is the status
        with which the request fails.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], int] = lambda method, name: 0
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.lock = threading.RLock()
        self.generations = itertools.count(1)

    def names(self, under: str) -> list[str]:
        """Returns the names of objects below ``bucket/folder``, relative to it."""
        with self.lock:
            start = f"{under}/"
            return sorted(key.removeprefix(start) for key in self.objects if key.startswith(start))

    def put(self, key: str, data: bytes) -> Stored:
        """Writes an object."""
        with self.lock:
            stored = self.objects[key] = Stored(data, next(self.generations))
            return stored


@contextlib.contextmanager
def served() -> Iterator[tuple[ObjectStore, str]]:
    """Serves a store while the block runs; gives it and its address, ``http://127.0.0.1:PORT``."""
    store = ObjectStore()
    handler = type("Handler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def of_server(address: str) -> dict[str, str]:
    """Returns the environment that sends gcsfs, TensorStore and Google's client to a server."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "GOOGLE_CLOUD_PROJECT": "project",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask by gRPC for the bucket's kind
    }


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up, as they do when they end."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _FailedError(Exception):
    """A request that is answered with a status that is not 200."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._upload_part)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act: Callable[[bytes], None]) -> None:
        body = self._body()  # also of what is refused: the connection goes on
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        # /storage/v1/b/BUCKET/o/NAME, after /upload or /download
        parts = url.path.split("/")
        parts = parts[parts.index("b") + 1 :]
        self.bucket, self.rest = unquote(parts[0]), [unquote(part) for part in parts[2:]]
        self.key = f"{self.bucket}/{self.rest[0]}" if self.rest else self.bucket
        self.is_bucket = len(parts) == 1
        if "name" in self.query:
            self.key = f"{self.bucket}/{self.query['name']}"
        with self.store.lock:
            self.store.requests.append((self.command, self.key))
            status = self.store.refuse(self.command, self.key)
        try:
            if status:
                raise _FailedError(status)
            act(body)
        except _FailedError as error:
            said = {"error": {"code": error.args[0], "message": f"refused with {error.args[0]}"}}
            self._send(json.dumps(said).encode(), error.args[0])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), Content_Type="application/json")

    def _described(self, key: str) -> dict[str, Any]:
        stored, name = self.store.objects[key], key.removeprefix(f"{self.bucket}/")
        crc = google_crc32c.value(stored.data).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "size": str(len(stored.data)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(crc).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
        }

    def _get(self, body: bytes) -> None:
        del body
        with self.store.lock:
            if self.is_bucket:
                self._send_json({"name": self.bucket, "kind": "storage#bucket"})
            elif not self.rest:
                self._send_json(self._listing())
            else:
                stored = self.store.objects.get(self.key)
                if stored is None:
                    raise _FailedError(404)
                if self.query.get("alt") != "media":
                    self._send_json(self._described(self.key))
                    return
                self._send_content(stored)

    def _send_content(self, stored: Stored) -> None:
        """Sends an object's bytes, or the range of them that is asked for."""
        if "ifGenerationNotMatch" in self.query and self.query["ifGenerationNotMatch"] == str(
            stored.generation
        ):
            raise _FailedError(304)
        self._check_generation(stored)
        data, status, headers = stored.data, 200, {"x_goog_generation": str(stored.generation)}
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, _, last = wanted.partition("-")
            begin = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last) + 1, len(data)) if first and last else len(data)
            if begin >= len(data):
                raise _FailedError(416)
            headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            data, status = data[begin:end], 206
        self._send(data, status, **headers)

    def _listing(self) -> dict[str, Any]:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        items, prefixes = [], dict[str, None]()
        for key in sorted(self.store.objects):
            bucket, _, name = key.partition("/")
            if bucket != self.bucket or not name.startswith(prefix) or name < first:
                continue
            if end and name >= end:
                continue
            below = name.removeprefix(prefix)
            if delimiter and delimiter in below:
                prefixes[prefix + below.partition(delimiter)[0] + delimiter] = None
            else:
                items.append(self._described(key))
        return {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)}

    def _check_generation(self, stored: Stored | None) -> None:
        wanted = self.query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (stored.generation if stored else 0):
            raise _FailedError(412)

    def _post(self, body: bytes) -> None:
        with self.store.lock:
            if "upload_id" in self.query:
                self._upload_part(body)
            elif "/upload/" in self.path:
                self._upload(body)
            elif self.rest[1] == "moveTo":
                self._copy(self.bucket, self.rest[3], moves=True)
            else:  # rewriteTo, copyTo
                self._copy(self.rest[3], self.rest[5], moves=False)

    def _upload(self, body: bytes) -> None:
        kind = self.query["uploadType"]
        if kind == "resumable":
            number = f"upload-{next(self.store.generations)}"
            if body and "name" not in self.query:
                self.key = f"{self.bucket}/{json.loads(body)['name']}"
            self.store.uploads[number] = (self.key, bytearray())
            host = f"http://{self.headers['Host']}"
            path = f"/upload/storage/v1/b/{self.bucket}/o?upload_id={number}"
            self._send(b"", Location=host + path)
            return
        if kind == "multipart":
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            _, description, content, _ = body.split(b"--" + boundary, 3)
            described = json.loads(_after_headers(description))
            self.key = f"{self.bucket}/{described['name']}"
            body = _after_headers(content).removesuffix(b"\n").removesuffix(b"\r")
        self._check_generation(self.store.objects.get(self.key))
        self.store.put(self.key, body)
        self._send_json(self._described(self.key))

    def _upload_part(self, body: bytes) -> None:
        """Takes a part of an object that is written in several requests."""
        self.key, so_far = self.store.uploads[self.query["upload_id"]]
        so_far += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or int(total) > len(so_far):
            self._send(b"", 308, Range=f"bytes=0-{len(so_far) - 1}")
            return
        self.store.put(self.key, bytes(so_far))
        self._send_json(self._described(self.key))

    def _copy(self, bucket: str, name: str, *, moves: bool) -> None:
        if self.key not in self.store.objects:
            raise _FailedError(404)
        self.store.put(f"{bucket}/{name}", self.store.objects[self.key].data)
        described = self._described(f"{bucket}/{name}")
        if moves:
            del self.store.objects[self.key]
            self._send_json(described)
        else:
            self._send_json(
                {"kind": "storage#rewriteResponse", "done": True, "resource": described}
            )

    def _delete(self, body: bytes) -> None:
        del body
        with self.store.lock:
            stored = self.store.objects.get(self.key)
            if stored is None:
                raise _FailedError(404)
            self._check_generation(stored)
            del self.store.objects[self.key]
            self._send(b"", 204)


def _after_headers(part: bytes) -> bytes:
    """Returns a part of a multipart body without its headers."""
    for end in (b"\r\n\r\n", b"\n\n"):
        head, found, content = part.partition(end)
        if found:
            return content
    return head
