"""Reads and writes Google Cloud Storage, explains its errors, and checks access before long work.

There are three clients: gcsfs (our files, and through etils.epath Orbax's small ones), TensorStore
(arrays of a checkpoint) and google-cloud-storage (Orbax looks up the kind of the bucket). All find
credentials as Google's libraries do: GOOGLE_APPLICATION_CREDENTIALS, those of `gcloud auth
application-default login`, or a Google VM's service account.

For an emulator: STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL, FSSPEC_GCS='{"token": "anon"}',
GOOGLE_AUTH_TOKEN_FOR_TESTING.
"""

import contextlib
import functools
import logging
import os
import random
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

from inf_jax.core.errors import UserError

_DEADLINE_S = 300.0  # of a range that is read
_TIMEOUT_S = 60.0  # gcsfs and TensorStore would retry for 1 and for 15 minutes
_ROLES = ("roles/storage.objectUser", "roles/storage.legacyBucketReader")  # the second: buckets.get


def open_path(url: str | os.PathLike) -> epath.Path:
    """The path of gs://..., with its clients configured. UserError if gcsfs is not installed."""
    _connect()
    return epath.Path(url)


@functools.cache
def _connect() -> None:
    # gcsfs's extension for zonal buckets asks over gRPC and waits a minute where nothing answers
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    os.environ.setdefault("EPATH_USE_TF", "false")  # the same client with and without TensorFlow
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # an old Python
            import fsspec
            import gcsfs  # noqa: F401
            import google.cloud.storage
            import google.cloud.storage_control_v2  # noqa: F401 (gcsfs, at its first upload)
    except ImportError as error:
        raise UserError(
            f"files in gs:// need gcsfs, which is not installed ({error}): "
            '`pip install "inf_jax[gcs]"`, or `pip install gcsfs`'
        ) from error
    # a cached listing would hide what other hosts write
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # it prints a traceback of what is reported in one line or asked for again
    if (log := logging.getLogger("gcsfs")).level == logging.NOTSET:  # GCSFS_DEBUG sets it
        log.setLevel(logging.CRITICAL + 1)


def download(path: epath.Path, target: Path) -> bool:
    """Downloads an object to a local file; False where there is none. Raises UserError."""
    with _client(path, "read it") as (client, name):
        try:
            client.get_file(name, str(target))
        except FileNotFoundError:
            return False
        return True


def read_object_range(
    path: epath.Path, start: int, stop: int, *, deadline_s: float = _DEADLINE_S
) -> bytes:
    """The bytes start..stop-1 of an object, asked for again after failures that may pass, each time
    after a longer wait, until the deadline. Raises UserError that names the object."""
    if start >= stop:
        return b""
    end, wait = time.monotonic() + deadline_s, 0.5
    while True:
        cut = None
        try:
            data = _ask(path, start, stop)
            if len(data) == stop - start:
                return data
            raise OSError(f"{len(data)} bytes came of {start} to {stop}")
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: no such object, or no such bucket; write it again, or correct the name"
            ) from error
        except Exception as error:  # OSError, and classes of gcsfs, aiohttp, google
            with contextlib.suppress(UserError):  # it is asked as long as the object is
                info = object_info(path)
                cut = info.size if info and info.size < stop else None
            if cut is not None:
                raise UserError(
                    f"{path}: has {cut} bytes, at least {stop} are expected: it is cut or another "
                    "one; upload it again, or delete it if tokenising wrote it and start again"
                ) from error
            if _status(error) or isinstance(error, UserError) or time.monotonic() + wait > end:
                raise explanation(path, f"read bytes {start} to {stop} of it", error) from error
        time.sleep(wait * (0.5 + random.random()))  # not all hosts at once
        wait = min(2 * wait, 30.0)


def _ask(path: epath.Path, start: int, stop: int) -> bytes:
    import fsspec

    client, name = fsspec.core.url_to_fs(str(path))
    ask = client._cat_file  # its sync form has no time limit
    return fsspec.asyn.sync(client.loop, ask, name, start=start, end=stop, timeout=_TIMEOUT_S)


class ObjectInfo(NamedTuple):
    """Of an object: its size in bytes, and its generation, which every write changes."""

    size: int
    generation: str


def object_info(path: epath.Path) -> ObjectInfo | None:
    """None where there is no such object. Raises UserError."""
    with _client(path, "look it up") as (client, name):
        try:
            found = client.info(name)
        except FileNotFoundError:
            return None
        return _info(found) if found["type"] == "file" else None


def objects_below(directory: epath.Path) -> dict[str, ObjectInfo]:
    """The objects below a directory, by name relative to it. Raises UserError."""
    with _client(directory, "list it") as (client, name):
        found = client.find(name, detail=True)
        return {path.removeprefix(f"{name}/"): _info(info) for path, info in found.items()}


def _info(found: dict) -> ObjectInfo:
    return ObjectInfo(int(found["size"]), str(found.get("generation", "")))


def upload(path: epath.Path, source: bytes | Path) -> None:
    """Uploads bytes or a local file as one object. Raises UserError."""
    with _client(path, "write it") as (client, name):
        if isinstance(source, bytes):
            client.pipe_file(name, source)
        else:
            client.put_file(str(source), name)


def delete_object(path: epath.Path) -> None:
    """Deletes an object. Raises UserError."""
    with _client(path, "delete it") as (client, name):
        client.rm_file(name)


def files_below(directory: epath.Path) -> list[str]:
    """Names of the objects below a directory, relative to it. Raises UserError."""
    with _client(directory, "list it") as (client, name):
        return [path.removeprefix(f"{name}/") for path in client.find(name) if path != name]


@contextlib.contextmanager
def _client(path: epath.Path, doing: str) -> Iterator[tuple]:
    import fsspec

    with explained(path, doing):
        yield fsspec.core.url_to_fs(str(path))


def check_bucket_access(directory: epath.Path, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Tries, with each client, what a run does: look up the bucket, write, list, read, delete.

    Raises UserError, with the remedy, if one of these fails or does not answer in time.
    """
    state: dict[str, UserError | str] = {"doing": ""}

    def probe() -> None:
        try:
            with contextlib.closing(_probe(directory)) as steps:
                for doing, act in steps:
                    state["doing"] = doing
                    with explained(directory, doing):
                        act()
        except UserError as error:
            state["error"] = error

    # a thread: nothing else limits the clients' retries and their search for credentials
    thread = threading.Thread(target=probe, daemon=True)
    with _quiet("fsspec", "gcsfs", "google"):
        thread.start()
        thread.join(timeout_s)
    if thread.is_alive():
        raise UserError(
            f"{directory}: Google Cloud Storage did not answer within {timeout_s:g} s when asked "
            f"to {state['doing']}; check this machine's network, DNS and proxy, then try again"
        )
    if "error" in state:
        raise state["error"]


def _probe(directory: epath.Path) -> Generator[tuple[str, Callable[[], object]], None, None]:
    import tensorstore as ts
    from google.cloud import storage

    bucket, folder = split(directory)
    name = f".probe-{secrets.token_hex(8)}"
    ours, arrays = directory / name, directory / f"{name}-arrays"
    spec = {"driver": os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs"), "bucket": bucket}
    client = functools.cache(lambda: ts.KvStore.open(spec | {"path": f"{folder}/"}).result())

    def read_back() -> None:
        if ours.read_bytes() != b"ours" or client().read(arrays.name).result().value != b"arrays":
            raise OSError("what was read differs from what was written")

    def listed() -> None:
        missing = {ours.name, arrays.name} - {path.name for path in directory.iterdir()}
        if missing:
            raise OSError(f"{', '.join(missing)} was written but is not listed")

    yield "find the bucket (storage.buckets.get)", lambda: storage.Client().get_bucket(bucket)
    try:
        yield "write (storage.objects.create)", lambda: ours.write_bytes(b"ours")
        yield "write arrays", lambda: client().write(arrays.name, b"arrays").result()
        yield "list (storage.objects.list)", listed
        yield "read (storage.objects.get)", read_back
        yield "delete (storage.objects.delete)", lambda: (ours.unlink(), arrays.unlink())
    finally:
        for path in (ours, arrays):
            with contextlib.suppress(Exception):  # deleted already, or what failed
                path.unlink()


def split(path: epath.Path) -> tuple[str, str]:
    """(bucket, the rest of the path)."""
    bucket, _, rest = str(path).removeprefix("gs://").partition("/")
    return bucket, rest


@contextlib.contextmanager
def explained(path: epath.Path, doing: str) -> Iterator[None]:
    """Turns the clients' errors in the block into a UserError that names path and remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OSError, and classes of gcsfs, aiohttp, google, TensorStore
        raise explanation(path, doing, error) from error


def explanation(path: epath.Path, doing: str, error: Exception) -> UserError:
    """What is wrong, in one line with its remedy."""
    if isinstance(error, UserError):
        return error
    bucket, _ = split(path)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    status = _status(error)
    if status == 401:
        return UserError(
            f"{path}: no valid Google credentials to {doing} ({reason}); run `gcloud auth "
            "application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS; a "
            "Google VM needs a service account with the scope cloud-platform"
        )
    if status == 403:
        return UserError(
            f"{path}: no permission to {doing} ({reason}); the bucket's owner grants it by "
            f"`gcloud storage buckets add-iam-policy-binding gs://{bucket} "
            f"--member=serviceAccount:EMAIL --role=ROLE`, once for each of {', '.join(_ROLES)}"
        )
    if status == 404:
        return UserError(
            f"{path}: no bucket {bucket} to {doing}; correct the name, or create it by "
            f"`gcloud storage buckets create gs://{bucket} --location=REGION`"
        )
    if "Project was not passed" in reason:
        return UserError(f"{path}: Google's client knows no project; set GOOGLE_CLOUD_PROJECT")
    return UserError(
        f"{path}: Google Cloud Storage failed to {doing} ({reason}); check this machine's network "
        "and https://status.cloud.google.com, then start again"
    )


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, if it is one with a remedy of its own."""
    signs = {
        401: r"UNAUTHENTICATED|Anonymous caller|Invalid Credentials|could not be refreshed",
        403: r"^Forbidden|PERMISSION_DENIED|: 403 ",
        404: r"NOT_FOUND",
    }
    kind = type(error)
    if kind.__module__.startswith("google.auth") and kind.__name__ != "TransportError":
        return 401
    if isinstance(error, FileNotFoundError):
        return 404
    code = getattr(error, "code", None)
    if str(code).isdecimal() and int(code) in signs:
        return int(code)
    return next((status for status, sign in signs.items() if re.search(sign, str(error))), None)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silences these loggers: they print a traceback of what is reported in one line."""
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, names):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        yield
