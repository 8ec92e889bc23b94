"""Handlers that pools of tests run: commands, each a line of shell that starts in a millisecond, and a class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.system import System

#: Notes that it runs, then gives the request back as its result.
NOTING = ("/bin/sh", "-c", 'request=$(cat); echo "$request" >> runs.log; printf %s "$request"')
#: The same, but its result waits until the file "gate" is there.
GATED = (
    "/bin/sh",
    "-c",
    (
        'request=$(cat); echo "$request" >> runs.log; until [ -e gate ]; do sleep 0.05; done;'
        ' echo "$request" >> ends.log; printf %s "$request"'
    ),
)

#: A module that holds classes whose objects do what a request's member "do" says.
OBEDIENT = '''\
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from slowjobs import outcomes

sys.path_at_import = list(sys.path)


class Obedient:
    """Note what has been made, and do as told."""

    def __init__(self, **options):
        self.options = options
        self.hoard = b""
        if Path("no-database").exists():
            raise ConnectionError("no database")
        with Path("made.log").open("a") as log:
            log.write(f"{os.getpid()}\\n")

    def process(self, request, key=None):
        with Path("runs.log").open("a") as log:
            log.write(f'{os.getpid()} {key}\\n')
        answer = getattr(self, request["do"].replace("-", "_"))(request)
        return {"pid": os.getpid()} if answer is None else answer

    def nothing(self, request):
        pass

    def echo(self, request):
        return {"request": request, "options": self.options}

    def where(self, request):
        return {"cwd": os.getcwd(), "path": sys.path_at_import[0], "environment": dict(os.environ)}

    def sleep(self, request):
        time.sleep(request["seconds"])

    def raise_(self, request):
        raise eval(request["what"], {"outcomes": outcomes})

    def return_(self, request):
        return eval(request["what"])

    def exit(self, request):
        os._exit(request["status"])

    def segfault(self, request):
        ctypes.string_at(0)

    def hang(self, request):
        """Start a process that starts another, note all three, and never come to an end."""
        self.leave_behind(request)
        time.sleep(600)

    def leave_behind(self, request):
        noting = "echo $$ >> pids.log; sh -c 'echo $$ >> pids.log; exec sleep 600' & wait"
        subprocess.Popen(["/bin/sh", "-c", noting])
        with Path("pids.log").open("a") as log:
            log.write(f"{os.getpid()}\\n")
        while len(Path("pids.log").read_text().split()) < request["pids"]:
            time.sleep(0.01)

    def print_(self, request):
        print(request["text"])
        print("to stderr", file=sys.stderr)
        subprocess.run(["/bin/echo", "from a child"], check=True)
        print("unfinished", end="")

    def flood(self, request):
        sys.stdout.write("y\\n" * request["lines"])

    def write(self, request):
        os.write(1, bytes(request["bytes"]) * request["times"])

    def close_output(self, request):
        os.close(1)
        os.close(2)

    def linger(self, request):
        threading.Thread(target=time.sleep, args=(600,)).start()

    def fork(self, request):
        if os.fork() == 0:
            raise RuntimeError("the forked one comes back")
        os.wait()

    def hoard_memory(self, request):
        self.hoard += b"x" * request["bytes"]


class Choosy(Obedient):
    def want(self, request):
        return request["do"] != "unwanted"
'''


def open_gate(system: System) -> None:
    (system.pool_folder / "gate").touch()


def runs(system: System) -> Counter[object]:
    """Return ``file_id -> how often its handler began``."""
    return _noted(system, "runs.log")


def ends(system: System) -> Counter[object]:
    """Return ``file_id -> how often its gated handler came to its end``."""
    return _noted(system, "ends.log")


def _noted(system: System, name: str) -> Counter[object]:
    log = system.pool_folder / name
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter(json.loads(line)["file_id"] for line in lines)


def living(pids: Iterable[int]) -> list[int]:
    """Return those of ``pids`` that have not ended."""
    return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        # A zombie has ended; only its parent has not asked yet.
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
