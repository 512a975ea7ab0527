"""Google Cloud Storage: the real clients against a fake, and what they may answer."""

import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from inf_jax.core.errors import UserError
from inf_jax.io import gcs as bucket
from inf_jax.io import storage

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


def test_large_files_and_transient_failures(gcs, run_dir, tmp_path):
    data = os.urandom(6 << 20)  # more than one request
    (tmp_path / "large").write_bytes(data)
    gcs.buckets["runs"].failures = 1
    bucket.upload(run_dir / "large", tmp_path / "large")
    assert gcs.buckets["runs"].objects["run/large"].data == data
    assert bucket.download(run_dir / "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert bucket.files_below(run_dir) == ["large"]


DENIED = {
    "storage.buckets.get": "find the bucket",
    "storage.objects.create": "write",
    "storage.objects.list": "list",
    "storage.objects.get": "read",
    "storage.objects.delete": "delete",
}


@pytest.mark.parametrize("permission", DENIED)
def test_a_bucket_without_a_permission(gcs, permission, caplog):
    gcs.make("denied", denied={permission})
    with pytest.raises(UserError) as error:
        storage.check_access(storage.as_path("gs://denied/run"))
    message = str(error.value)
    assert "\n" not in message
    assert f"gs://denied/run: no permission to {DENIED[permission]} ({permission})" in message
    assert "add-iam-policy-binding gs://denied --member=" in message
    assert not caplog.records
    left = gcs.buckets["denied"].objects
    assert not left or permission == "storage.objects.delete"


def test_no_bucket_no_credentials_no_answer(gcs, monkeypatch):
    with pytest.raises(UserError, match=r"no bucket absent .* storage buckets create gs://absent "):
        storage.check_access(storage.as_path("gs://absent/run"))
    gcs.make("private", needs_token=True)
    with pytest.raises(UserError, match=r"no valid Google credentials .*gcloud auth appl"):
        storage.check_access(storage.as_path("gs://private/run"))
    gcs.make("ill", failures=10**6)

    class Thread(threading.Thread):
        def join(self, timeout=None):  # the time starts with the first request
            while gcs.buckets["ill"].failures == 10**6:
                time.sleep(0.01)
            super().join(timeout)

    monkeypatch.setattr(bucket, "threading", SimpleNamespace(Thread=Thread))
    with pytest.raises(
        UserError, match=r"did not answer within 0\.5 s when asked to find the bucket"
    ):
        bucket.check_bucket_access(storage.as_path("gs://ill/run"), timeout_s=0.5)
    monkeypatch.undo()
    gcs.make("well", failures=1)
    bucket.check_bucket_access(storage.as_path("gs://well/run"))


def test_a_failed_read_is_reported_once(gcs, run_dir, caplog):
    """Without the traceback that gcsfs logs."""
    bucket.upload(run_dir / "file", b"content")
    with pytest.raises(UserError, match="has 7 bytes, at least 20 are expected"):
        bucket.read_object_range(run_dir / "file", 10, 20)
    assert not caplog.records


def test_without_gcsfs(monkeypatch):
    bucket._connect.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r'gs:// need gcsfs.*pip install "inf_jax\[gcs\]"'):
        storage.as_path("gs://runs/run")


def test_a_range_is_asked_for_until_it_comes(gcs, run_dir, monkeypatch):
    """Also where the look at the object's size fails meanwhile."""
    retry = pytest.importorskip("gcsfs.retry")
    bucket.upload(run_dir / "large", b"0123456789")

    async def at_once(seconds):
        pass

    monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr(
        bucket, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
    )
    gcs.buckets["runs"].failures = 20  # 6 for the bytes, 12 for the size, 2 again
    assert bucket.read_object_range(run_dir / "large", 2, 5) == b"234"
    assert not gcs.buckets["runs"].failures
