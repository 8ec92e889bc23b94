#!/usr/bin/python3
"""What nsqd.service needs around nsqd itself: note how it ended, and wait until it answers.

starting DIR    say so in the journal if the last end was not clean, then forget it
stopped DIR     have its queue on the disk, and note how it ended ($SERVICE_RESULT of systemd)
answering URL SECONDS    return when /ping says OK; exit 1 when nsqd is gone or the time is over
"""

import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

#: Written at every end, removed at every start: none at a start means that the machine went down with nsqd running.
NOTE = "last-stop"
#: seconds between two questions; nsqd answers within some milliseconds of its start
INTERVAL = 0.05
#: journal's level of a warning, as a prefix of the line
WARNING = "<4>"


def starting(directory: Path) -> None:
    """Tell of an end that was not clean, once."""
    note = directory / NOTE
    used_before = (directory / "nsqd.dat").exists()
    last = note.read_text().strip() if note.exists() else "no note: the machine or systemd went down with it"
    if used_before and last != "success":
        sys.stdout.write(f"{WARNING}unclean stop: what was in flight or deferred may be lost ({last})\n")
    note.unlink(missing_ok=True)


def stopped(directory: Path) -> None:
    """Have all that nsqd wrote on the disk, and note how it ended."""
    # nsqd leaves its queue files to the kernel, and who stops it may cut the power next.
    for queue in directory.glob("*.dat"):
        with queue.open("rb") as file:
            os.fsync(file.fileno())
    # The note must be on the disk before a power cut can make a clean stop look unclean.
    with (directory / NOTE).open("w") as note:
        note.write(os.environ.get("SERVICE_RESULT", "unknown") + "\n")
        note.flush()
        os.fsync(note.fileno())


def answering(url: str, seconds: float) -> None:
    """Return once nsqd answers; exit when it is gone or ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    pid = os.environ["MAINPID"]
    last: object = "no answer yet"
    while True:
        # Another nsqd on the same address would answer, too.
        if not Path(f"/proc/{pid}").exists():
            sys.exit("nsqd has ended")
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=1) as answer:  # noqa: S310 (http, from the unit)
                last = answer.read(100)
                if last == b"OK":
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            last = error
        if time.monotonic() > deadline:
            sys.exit(f"nsqd does not answer at {url}/ping after {seconds:g} s: {last}")
        time.sleep(INTERVAL)


def main() -> None:
    """Do what the first argument says."""
    verb, *arguments = sys.argv[1:]
    if verb == "starting":
        starting(Path(arguments[0]))
    elif verb == "stopped":
        stopped(Path(arguments[0]))
    elif verb == "answering":
        answering(arguments[0], float(arguments[1]))
    else:
        sys.exit(f"{verb!r} is none of starting, stopped, answering")


if __name__ == "__main__":
    main()
