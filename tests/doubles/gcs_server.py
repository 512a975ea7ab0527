"""An in-memory Google Cloud Storage on 127.0.0.1: the part of the JSON API that gcsfs, TensorStore
and google-cloud-storage use.

    with GcsServer() as server:
        server.make("bucket")
        subprocess.run(..., env=os.environ | server.environment)
"""

import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Object(NamedTuple):
    """An object's content and its generation, which every write changes."""

    data: bytes
    generation: int


@dataclass
class Bucket:
    """Objects of a bucket, and its scripted faults.

    Attributes:
      objects: by name.
      denied: IAM permissions that are refused, e.g. "storage.objects.create".
      needs_token: whether requests without an Authorization header are refused.
      failures: number of requests still to be answered with 503.
      latency_s: before each answer.
      requests: permission -> number of requests that needed it.
      served: object -> bytes of it that were sent.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    needs_token: bool = False
    failures: int = 0
    latency_s: float = 0.0
    requests: Counter = field(default_factory=Counter)
    served: Counter = field(default_factory=Counter)


class Refused(Exception):
    """A request is refused; `args` are HTTP status and message."""


class GcsServer(contextlib.AbstractContextManager):
    """The server; `environment` holds the variables that direct the clients to it."""

    def __init__(self, port: int = 0):
        self.buckets: dict[str, Bucket] = {}
        self.lock = threading.RLock()
        self.sessions: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.generation = 1
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.gcs = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }

    def __enter__(self) -> "GcsServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def make(self, name: str, **behaviour) -> Bucket:
        """Creates an empty bucket."""
        bucket = self.buckets[name] = Bucket(**behaviour)
        return bucket

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict:
        """Writes an object if the preconditions in `query` hold; returns its metadata."""
        permit(self.buckets[bucket], "storage.objects.create")
        objects = self.buckets[bucket].objects
        if name in objects:
            permit(self.buckets[bucket], "storage.objects.delete")
        self.match(objects.get(name), query)
        self.generation += 1
        objects[name] = Object(data, self.generation)
        return resource(bucket, name, objects[name])

    @staticmethod
    def match(found: Object | None, query: dict[str, str]) -> None:
        """Raises Refused if the generation does not meet the preconditions."""
        generation = found.generation if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412, "conditionNotMet")
        if query.get("ifGenerationNotMatch") == str(generation):
            raise Refused(304, "")


def permit(bucket: Bucket, permission: str) -> None:
    """Raises Refused if the bucket denies the permission."""
    bucket.requests[permission] += 1
    if permission in bucket.denied:
        what = "object" if ".objects." in permission else "bucket"
        raise Refused(
            403,
            f"caller does not have {permission} access to the Google Cloud Storage {what}. "
            f"Permission '{permission}' denied on resource (or it may not exist).",
        )


def resource(bucket: str, name: str, found: Object) -> dict:
    """An object's metadata."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "name": name,
        "bucket": bucket,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "timeCreated": now,
        "updated": now,
        "etag": f"e{found.generation}",
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client was killed or has closed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        gcs = self.server.gcs
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.split("/")]
        found = gcs.buckets.get(parts[parts.index("b") + 1]) if "b" in parts else None
        time.sleep(found.latency_s if found else 0)  # others are answered meanwhile
        try:
            with gcs.lock:
                at = parts.index("b")
                name = parts[at + 1]
                if name not in gcs.buckets:
                    raise Refused(404, "The specified bucket does not exist.")
                bucket = gcs.buckets[name]
                if bucket.failures > 0:
                    bucket.failures -= 1
                    raise Refused(503, "Backend Error")
                if bucket.needs_token and "Authorization" not in self.headers:
                    permission = "storage.objects.create"
                    raise Refused(401, f"Anonymous caller does not have {permission} access")
                if parts[1] == "upload":
                    self._upload(name, query, body)
                elif len(parts) == at + 2:
                    permit(bucket, "storage.buckets.get")
                    self._json({"kind": "storage#bucket", "name": name, "id": name})
                elif len(parts) == at + 3:
                    self._list(name, query)
                else:
                    self._object(name, parts[at + 3 :], query, body)
        except Refused as refused:
            status, message = refused.args
            self._json({"error": {"code": status, "message": message}}, status=status)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        found = self.server.gcs.buckets[bucket]
        permit(found, "storage.objects.list")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, end = query.get("startOffset", ""), query.get("endOffset")
        most, after = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        items, prefixes, last, token = [], [], "", None
        for name in sorted(found.objects):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            folder = prefix + rest.split(delimiter)[0] + delimiter if delimiter else ""
            folder = folder if delimiter and delimiter in rest else ""
            if (folder or name) <= after or folder in prefixes:
                continue
            if len(items) + len(prefixes) == most:
                token = last
                break
            last = folder or name
            if folder:
                prefixes.append(folder)
            else:
                items.append(resource(bucket, name, found.objects[name]))
        out = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        self._json(out | ({"nextPageToken": token} if token else {}))

    def _object(self, bucket: str, rest: list[str], query: dict[str, str], body: bytes) -> None:
        gcs, name = self.server.gcs, rest[0]
        found = gcs.buckets[bucket]
        if self.command == "POST":
            self._copy(bucket, rest, query, body)
            return
        permit(found, f"storage.objects.{'get' if self.command == 'GET' else 'delete'}")
        if name not in found.objects:
            raise Refused(404, f"No such object: {bucket}/{name}")
        gcs.match(found.objects[name], query)
        if self.command == "DELETE":
            del found.objects[name]
            self._send(204, b"")
        elif query.get("alt") == "media":
            self._media(found, name)
        else:
            self._json(resource(bucket, name, found.objects[name]))

    def _media(self, bucket: Bucket, name: str) -> None:
        found = bucket.objects[name]
        size, headers = len(found.data), {"x-goog-generation": str(found.generation)}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            bucket.served[name] += size
            self._send(200, found.data, headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            raise Refused(416, "Requested range not satisfiable")
        bucket.served[name] += stop - start
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(206, found.data[start:stop], headers)

    def _copy(self, bucket: str, rest: list[str], query: dict[str, str], body: bytes) -> None:
        gcs, objects = self.server.gcs, self.server.gcs.buckets[bucket].objects
        permit(gcs.buckets[bucket], "storage.objects.get")
        if rest[1] == "compose":
            names = [source["name"] for source in json.loads(body)["sourceObjects"]]
        else:
            names = rest[:1]
        if not set(names) <= objects.keys():
            raise Refused(404, f"No such object: {bucket}/{names}")
        data = b"".join(objects[name].data for name in names)
        if rest[1] == "compose":
            self._json(gcs.put(bucket, rest[0], data, query))
        elif rest[1] == "moveTo":
            done = gcs.put(bucket, rest[3], data, query)
            permit(gcs.buckets[bucket], "storage.objects.delete")
            del objects[rest[0]]
            self._json(done)
        else:  # rewriteTo, copyTo
            done = gcs.put(rest[3], rest[5], data, query)
            size = str(len(data))
            written = {"done": True, "resource": done, "objectSize": size}
            self._json(written | {"totalBytesRewritten": size} if rest[1] == "rewriteTo" else done)

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        gcs = self.server.gcs
        if self.command == "DELETE":
            del gcs.sessions[query["upload_id"]]
            self._send(499, b"")
        elif "upload_id" in query:
            self._chunk(query["upload_id"], body)
        elif query["uploadType"] == "media":
            self._json(gcs.put(bucket, query["name"], body, query))
        elif query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            described, _ = message_from_bytes(head + body).get_payload()
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            data = body.split(b"--" + boundary)[2]
            data = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            name = json.loads(described.get_payload())["name"]
            self._json(gcs.put(bucket, name, data, query))
        else:
            permit(gcs.buckets[bucket], "storage.objects.create")
            key = str(len(gcs.sessions))
            name = query.get("name") or json.loads(body)["name"]
            gcs.sessions[key] = bucket, name, query, bytearray()
            where = f"{gcs.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            self._send(200, b"", {"Location": where})

    def _chunk(self, key: str, body: bytes) -> None:
        bucket, name, query, data = self.server.gcs.sessions[key]
        first, last, size = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"]
        ).groups()
        if first is not None:
            del data[int(first) :]
            data += body
            assert len(data) == int(last) + 1
        if size != "*" and len(data) == int(size):
            self._json(self.server.gcs.put(bucket, name, bytes(data), query))
        else:
            self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def _json(self, value: dict, *, status: int = 200) -> None:
        body = b"" if status == 304 else json.dumps(value).encode()
        self._send(status, body, {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # gcsfs drops what it no longer needs
            self.end_headers()
            self.wfile.write(body)
