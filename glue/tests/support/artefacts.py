"""Where the servers' programs are. One that is missing is a failure with a remedy, never a skipped test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

REMEDY = "run `make test-integration`, which builds or installs it"


class MissingArtefactError(Exception):
    """A server's program is not on this machine."""

    def __init__(self, what: str, where: object) -> None:
        super().__init__(f"{what} is not at {where}: {REMEDY}")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slowjobs"


def nsqd() -> Path:
    program = cache() / "nsq-1.3.0" / "bin" / "nsqd"
    if not program.is_file():
        raise MissingArtefactError("nsqd 1.3.0", program)
    return program


def kafka_classpath() -> str:
    folder = cache() / "kafka_2.13-4.3.0" / "libs"
    if not list(folder.glob("kafka_*.jar")):
        raise MissingArtefactError("Kafka 4.3.0", folder)
    return f"{folder}/*"


def java() -> Path:
    return _on_path("java")


def postgresql() -> Path:
    """Return the folder of the newest PostgreSQL server's programs; Debian keeps them off the PATH."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if folders:
        return max(folders, key=lambda folder: int(folder.parent.name))
    return _on_path("initdb").parent


def _on_path(program: str) -> Path:
    found = shutil.which(program)
    if found is None:
        raise MissingArtefactError(program, "any folder of PATH")
    return Path(found)
