"""Compare a file's MD5 with the one that a request gives: one request on stdin, one result on stdout.

Request: {"file_id", "path", "md5"}. Result: {"status": "match" | "mismatch" | "missing", "hit", "md5", "size_bytes"}.
Exit 65 rejects a request that no repetition can help, with the reason on stderr.
"""

import hashlib
import json
import os.path
import re
import sys

#: sysexits.h's EX_DATAERR: the request is at fault.
EXIT_REJECT = 65
#: bytes read at once.
CHUNK = 1 << 20
MD5 = re.compile("[0-9a-fA-F]{32}")


class RejectedError(Exception):
    """A request that cannot be worked on; the text says why."""


def checked(request):
    """Return path and expected digest of a request, or raise RejectedError with what is wrong with it."""
    for name in ("file_id", "path", "md5"):
        if name not in request:
            raise RejectedError(f"{name} is missing")
    path, expected = request["path"], request["md5"]
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:  # noqa: PTH117
        raise RejectedError(f"path: got {path!r}, wanted an absolute path")
    if not isinstance(expected, str) or not MD5.fullmatch(expected):
        raise RejectedError(f"md5: got {expected!r}, wanted 32 hexadecimal digits")
    return path, expected.lower()


def check(request):
    """Return the result for one request."""
    path, expected = checked(request)
    # No pathlib here: a process for each request, and importing it takes as long as a small file's digest.
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except (FileNotFoundError, NotADirectoryError):
        return {"status": "missing", "hit": False, "md5": None, "size_bytes": None}
    except (PermissionError, IsADirectoryError) as error:
        raise RejectedError(f"path: {error.strerror}: {path}") from error
    found = digest.hexdigest()
    status = "match" if found == expected else "mismatch"
    return {"status": status, "hit": status == "match", "md5": found, "size_bytes": size}


def main():
    """Work on the request on standard input."""
    try:
        result = check(json.load(sys.stdin))
    except RejectedError as reason:
        sys.stderr.write(f"{reason}\n")
        return EXIT_REJECT
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
