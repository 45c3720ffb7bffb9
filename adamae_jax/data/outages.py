"""Which errors say that storage fails, and nothing of what it holds."""

import errno

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# What a file system says that fails; a network's, mostly, and the network itself.
FAILING = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EIO"),
        *("ENETDOWN", "ENETUNREACH", "ENODEV", "ENOLINK", "ENOTCONN", "ENXIO", "EREMOTEIO"),
        *("EROFS", "ESHUTDOWN", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)  # not every system has them all
)
# What has no room for a moment: a cache that a mounted bucket keeps, the kernel's tables.
_SHORT = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def is_outage(error: BaseException) -> bool:
    """Whether an error of reading is no fault of the file.

    That it is not there, may not be read, or holds nonsense (of which Pillow makes an `OSError`
    without a number) is its own. FFmpeg's errors tell nothing: it calls damage EIO, and takes a
    failed read for the end of a file; see `adamae_jax.data.video_file`.
    """
    return isinstance(error, OSError) and error.errno in FULL | FAILING | _SHORT
