"""Opens a tokenised split, on a local disk or in a bucket, whatever its order."""

import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inf_jax.core.errors import UserError
from inf_jax.data.tokenised.dataset import MANIFEST, TokenisedDataset
from inf_jax.data.tokenised.sidecars import index_path
from inf_jax.data.tokenised.windowed import STAGE_KEY, WindowedDataset
from inf_jax.io import gcs
from inf_jax.io.json_files import path_inside, read_json
from inf_jax.io.storage import AnyPath, copy_here, in_tmpdir, is_bucket


def open_tokenised(directory: AnyPath, *, limit: int) -> TokenisedDataset:
    """The tokenised split of a directory; `limit` as of `WindowedDataset`.

    One in a bucket that is not shuffled for windows is copied to TMPDIR: a host may need any of its
    records at any time.

    Raises:
      UserError: as of `TokenisedDataset`, or it is larger than the limit.
    """
    manifest = read_json(directory / MANIFEST, kind=dict, remedy="tokenise the split again")
    if "columns" in manifest:
        return WindowedDataset(directory, limit=limit)
    if not is_bucket(directory):
        return TokenisedDataset(directory)
    return _CopiedDataset(directory, [str(s["file"]) for s in manifest["shards"]], limit=limit)


class _CopiedDataset(TokenisedDataset):
    """A dataset in a bucket, read from a copy that goes with the object."""

    def __init__(self, directory: AnyPath, shards: list[str], *, limit: int):
        objects, source = gcs.objects_below(directory), directory / MANIFEST
        remote = [path_inside(directory, name, source) for name in shards]
        names = [MANIFEST, *shards, *(index_path(path).name for path in remote)]
        if missing := [name for name in names if name not in objects]:
            raise UserError(f"{directory / missing[0]} is missing; tokenise the split again")
        size = sum(objects[name].size for name in names)
        if size > limit:
            mib = -(-size // 2**20)
            raise UserError(
                f"{directory}: in the global order of this run each host reads all of the split, "
                f"{mib:,} MiB, and {STAGE_KEY}={limit >> 20}: set {STAGE_KEY}={mib}, or begin a "
                "new run with data.shuffle=windows, in which a host reads its own share"
            )
        with in_tmpdir():
            local = Path(tempfile.mkdtemp(prefix="inf_jax-"))
        weakref.finalize(self, shutil.rmtree, local, ignore_errors=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: copy_here(directory / name, local / name), names))
        try:
            super().__init__(local)
        except UserError as error:  # not of the copy, which goes
            raise UserError(str(error).replace(str(local), str(directory))) from error
        self.directory, self._paths = directory, remote
        for reader, path in zip(self._readers, remote, strict=True):
            reader.path = path  # what messages name
