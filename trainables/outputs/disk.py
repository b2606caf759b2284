"""Say what to do after an error of a disk or an object store.

disk_message(error)      # "[Errno 28] No space left on device; free space ..."
"""

import errno
import os

_WRITE = "expected write access: change the permissions, or choose another folder"
_REMEDIES = {
    errno.ENOSPC: "free space on the disk of the storage, then repeat the command",
    errno.EDQUOT: "free space in your quota of this disk, then repeat the command",
    errno.EFBIG: "raise the limit of the file size (ulimit -f), or free space, then repeat the command",
    errno.EROFS: _WRITE,
    errno.EACCES: _WRITE,
    errno.EPERM: _WRITE,
    errno.ENOTDIR: "expected a folder, but a file is in its place: remove the file, or choose another folder",
    errno.EEXIST: "expected a folder, but a file is in its place: remove the file, or choose another folder",
    errno.EISDIR: "expected a file, but a folder is in its place: remove the folder, or choose another path",
    errno.ENOENT: "it was moved or deleted: restore it, then repeat the command",
    errno.EIO: "check the disk and the network, then repeat the command",
}


def disk_message(error: BaseException) -> str:
    """Return the message of `error`, with what to do if it is an OSError of the operating system or of an object store.

    The messages of other errors, and those of our own code, say this themselves and are returned unchanged.
    """
    text = str(error)
    if not isinstance(error, OSError):
        return text
    if "AWS Error" in text or "google::cloud" in text:  # of pyarrow
        return f"{text}; expected an object store that answers: check URI, endpoint, network and credentials"
    remedy = _REMEDIES.get(error.errno or 0)
    is_own = error.strerror != os.strerror(error.errno or 0)
    return text if is_own or not remedy else f"{text}; {remedy}"
