"""Log every fsync and rename of a process to the file $FSYNC_LOG.

Python imports this module at its start if PYTHONPATH contains its folder. tests/tune/whole/test_power_loss.py removes
everything that was not fsynced from the files of a killed study, to simulate a power loss.
"""

import os


def note(*fields: object) -> None:
    handle = os.open(os.environ["FSYNC_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, ("\t".join(map(str, fields)) + "\n").encode())
    os.close(handle)


def recorded(name: str) -> None:
    original = getattr(os, name)

    def call(source, target, *arguments, **options):
        result = original(source, target, *arguments, **options)
        note("rename", os.path.realpath(source), os.path.realpath(target))
        return result

    setattr(os, name, call)


if "FSYNC_LOG" in os.environ:
    fsync = os.fsync

    def noted_fsync(handle) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        size = os.fstat(number).st_size
        fsync(number)
        note("fsync", os.readlink(f"/proc/self/fd/{number}"), size)  # noqa: PTH115 - pathlib is not imported by then

    os.fsync = noted_fsync
    recorded("rename")
    recorded("replace")
