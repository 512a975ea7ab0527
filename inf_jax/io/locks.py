"""Exclusive locks on open files and directories; the kernel frees them when their process ends."""

import filelock


def try_lock(descriptor: int, *, if_unsupported: bool) -> bool:
    """Takes the lock without waiting; False where another open file has it.

    Args:
      descriptor: of an open file or directory; closing it frees the lock.
      if_unsupported: what to return on a file system without locks.
    """
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return if_unsupported
