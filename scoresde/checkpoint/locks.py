"""Locks of files and folders between processes, where the system has them: on Windows files alone can be locked."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Whether the lock of a file or folder that exists is held while the context lasts; a shared one is waited for.

    True as well where there are no locks: on some file systems, and for folders on Windows.
    """
    if fcntl is None and path.is_dir():
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)
    try:
        yield _locked(descriptor, shared)
    finally:
        os.close(descriptor)  # and with it the lock


def _locked(descriptor: int, shared: bool) -> bool:
    try:
        if fcntl is None:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
    return True
