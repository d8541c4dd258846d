"""What a script says on stderr when it ends: errors in words, and lines that stay whole among several
processes.

Left out: progress (`report.py`), and logging (`training.py`).
"""

import errno
import sys


def in_words(error: ValueError | OSError) -> str:
    """What went wrong, and for what a disk refuses also what to do."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}there is no room on the disk; make some, or choose another --output"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where}{error.strerror}; change that, or choose another place"
    return f"{where}{error.strerror}" if error.strerror else str(error)


def print_whole(text: str) -> None:
    """Print a line on stderr in one write, which those of other processes do not cut in two.

    print writes the end of a line by itself if streams are not buffered (PYTHONUNBUFFERED).
    """
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
