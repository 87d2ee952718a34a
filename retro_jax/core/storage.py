"""Recognizes storage errors: no space, no permission, a failing device."""

import errno
import re

STORAGE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ENOTDIR", "ESTALE")
}
# Texts of tensorstore and gRPC, which give no error number.
STORAGE_WORDS = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Input/output error|"
    "File too large|Not a directory"
)


def storage_fault(error: BaseException | None) -> str | None:
    """The kind of a storage error (space, permission, device), by errno or by a library's text; None: another error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            return error.strerror
        if found := STORAGE_WORDS.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
