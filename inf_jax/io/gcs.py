"""Google Cloud Storage: the clients, what goes wrong with them, and a check before long work.

Three clients take part: gcsfs, through etils.epath (small files and listings, ours and Orbax's),
TensorStore's own (a checkpoint's arrays) and google-cloud-storage (by which Orbax asks what kind of
bucket it is). They find credentials as Google's libraries do: GOOGLE_APPLICATION_CREDENTIALS, those
of `gcloud auth application-default login`, or a Google VM's service account.

For a stand-in: STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL, FSSPEC_GCS='{"token": "anon"}',
GOOGLE_AUTH_TOKEN_FOR_TESTING.
"""

import contextlib
import functools
import logging
import os
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from etils import epath

from inf_jax.core.errors import UserError

_PATIENCE_S = 60.0  # gcsfs and TensorStore would try for 1 and for 15 minutes
_ROLES = ("roles/storage.objectUser", "roles/storage.legacyBucketReader")  # the second: buckets.get


def open_path(url: str | os.PathLike) -> epath.Path:
    """The path of gs://BUCKET/DIRECTORY, its clients ready.

    Raises:
      UserError: gcsfs is not installed.
    """
    _connect()
    return epath.Path(url)


@functools.cache
def _connect() -> None:
    # gcsfs's extension for zonal buckets asks over gRPC, for a minute each time that nobody answers
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client, whether TensorFlow is there or not
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of Python's end
            import fsspec
            import gcsfs  # noqa: F401
            import google.cloud.storage
            import google.cloud.storage_control_v2  # noqa: F401 (gcsfs, at its first upload)
    except ImportError as error:
        raise UserError(
            f"files in gs:// need gcsfs, which is not here ({error}); install it: "
            '`pip install "inf_jax[tpu]"`, or `pip install gcsfs`'
        ) from error
    # a listing that is kept would hide what other hosts write
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def read(path: epath.Path, target: Path) -> bool:
    """Copies an object to a local file; False where there is none. Raises UserError."""
    with explained(path, "read it"):
        client, name = _client(path)
        try:
            client.get_file(name, str(target))
        except FileNotFoundError:
            return False
        return True


def write(path: epath.Path, source: bytes | Path) -> None:
    """Writes an object, of these bytes or of this local file. Raises UserError."""
    with explained(path, "write it"):
        client, name = _client(path)
        if isinstance(source, bytes):
            client.pipe_file(name, source)
        else:
            client.put_file(str(source), name)


def delete(path: epath.Path) -> None:
    """Deletes an object. Raises UserError."""
    with explained(path, "delete it"):
        client, name = _client(path)
        client.rm_file(name)


def files_below(directory: epath.Path) -> list[str]:
    """Names of the objects below a directory, relative to it. Raises UserError."""
    with explained(directory, "list it"):
        client, name = _client(directory)
        return [found.removeprefix(f"{name}/") for found in client.find(name) if found != name]


def _client(path: epath.Path):
    import fsspec

    return fsspec.core.url_to_fs(str(path))


def check(directory: epath.Path, *, timeout_s: float = _PATIENCE_S) -> None:
    """Does there, with each client, what a run does: look at the bucket, write, list, read, delete.

    Raises:
      UserError: something of this fails, or does not answer in time; with the remedy.
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

    # a thread: of their patience, and of the search for credentials, nothing else sets the limit
    thread = threading.Thread(target=probe, daemon=True)
    with _quiet("fsspec", "gcsfs", "google"):
        thread.start()
        thread.join(timeout_s)
    if thread.is_alive():
        raise UserError(
            f"{directory}: Google Cloud Storage has not answered within {timeout_s:g} s, asked to "
            f"{state['doing']}; look at this machine's network, DNS and proxy, then try again"
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
            raise OSError("it reads otherwise than it was written")

    def found() -> None:
        missing = {ours.name, arrays.name} - {path.name for path in directory.iterdir()}
        if missing:
            raise OSError(f"{', '.join(missing)} is not listed, but was written")

    yield "find the bucket (storage.buckets.get)", lambda: storage.Client().get_bucket(bucket)
    try:
        yield "write (storage.objects.create)", lambda: ours.write_bytes(b"ours")
        yield "write arrays", lambda: client().write(arrays.name, b"arrays").result()
        yield "list (storage.objects.list)", found
        yield "read (storage.objects.get)", read_back
        yield "delete (storage.objects.delete)", lambda: (ours.unlink(), arrays.unlink())
    finally:
        for path in (ours, arrays):
            with contextlib.suppress(Exception):  # gone, or it was one of these that failed
                path.unlink()


def split(path: epath.Path) -> tuple[str, str]:
    """(bucket, the rest of the path)."""
    bucket, _, rest = str(path).removeprefix("gs://").partition("/")
    return bucket, rest


@contextlib.contextmanager
def explained(path: epath.Path, doing: str) -> Iterator[None]:
    """Turns what the clients raise in the block into a UserError that names path and remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OSError, and classes of gcsfs, aiohttp, google and TensorStore
        raise _explain(path, doing, error) from error


def _explain(path: epath.Path, doing: str, error: Exception) -> UserError:
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
            f"{path}: no permission to {doing} ({reason}); whoever owns the bucket gives it by "
            f"`gcloud storage buckets add-iam-policy-binding gs://{bucket} "
            f"--member=serviceAccount:EMAIL --role=ROLE`, once for each of {', '.join(_ROLES)}"
        )
    if status == 404:
        return UserError(
            f"{path}: no bucket {bucket} to {doing}; mend the name, or make it by "
            f"`gcloud storage buckets create gs://{bucket} --location=REGION`"
        )
    if "Project was not passed" in reason:
        return UserError(f"{path}: Google's client knows no project; set GOOGLE_CLOUD_PROJECT")
    return UserError(
        f"{path}: Google Cloud Storage failed to {doing} ({reason}); look at this machine's "
        "network and at https://status.cloud.google.com, then start again"
    )


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, where it is one of those that have a remedy."""
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
    """Nothing of these loggers meanwhile: they print a trace of what is reported in one line."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
