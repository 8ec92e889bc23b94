"""The local hosts, asked and told from outside."""

import os
import subprocess

#: the local hosts are root's containers.
OWNER = [] if os.geteuid() == 0 else ["sudo"]
WORKERS = ("worker1", "worker2")


def on(host: str, *command: str, data: bytes = b"", accept: tuple[int, ...] = (0,)) -> bytes:
    """Run a command on a local host and return what it printed. Raises SystemExit for another status."""
    argv = [*OWNER, "podman", "exec", "--interactive", f"slowjobs-{host}", *command]
    done = subprocess.run(argv, input=data, capture_output=True, check=False)
    if done.returncode not in accept:
        said = (done.stderr or done.stdout).decode(errors="replace")
        raise SystemExit(f"{' '.join(command[:4])} on {host} ended with {done.returncode}: {said}")
    return done.stdout


def put(host: str, path: str, content: bytes) -> None:
    """Write a file on a local host."""
    on(host, "sh", "-c", f"cat > {path}", data=content)


def query(statement: str) -> list[list[str]]:
    """Return the rows of an SQL statement."""
    psql = ("runuser", "-u", "postgres", "--", "psql", "-d", "slowjobs", "-AtF", " ", "-c", statement)
    return [line.split() for line in on("data1", *psql).decode().splitlines()]
