"""The documents that the demo's web server has: those of Debian's documentation packages on data1."""

import io
import tarfile

from hosts import on

#: below /usr/share; by the address of the web server, too.
FOLDERS = ("doc/debian-history", "doc/developers-reference", "doc/packaging-tutorial", "R/doc/manual")


def paths(suffix: str) -> list[str]:
    """Return the paths of all documents of a kind below /usr/share, "pdf" or "html"; no large ones: they take long."""
    found = on("data1", "sh", "-c", f"cd /usr/share && find {' '.join(FOLDERS)} -type f -name '*.{suffix}' -size -2M")
    return sorted(found.decode().splitlines())


def contents(of: list[str]) -> dict[str, bytes]:
    """Return path -> content."""
    packed = on("data1", "tar", "--create", "--directory=/usr/share", *of)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in members.items() if file}
