"""Run tasks in a local podman container: enter its namespaces, with the module's code on standard input.

``containers.podman.podman`` keeps standard input closed, so it cannot pipeline: each task copies its module first and
needs five calls of podman, each of which takes 0.2 s of a core. Entering takes 0.006 s.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection import ConnectionBase, ensure_connect
from ansible.utils.display import Display

DOCUMENTATION = """
name: podman_enter
author: the slowjobs project
short_description: Run tasks in a local podman container, pipelined
description:
  - Runs commands as root in the namespaces of a running container.
  - The number of its first process is read from where C(podman run --pidfile) wrote it.
  - Files are copied through the same channel, so mounts inside the container such as C(/tmp) are seen as they are.
extends_documentation_fragment:
  - connection_pipelining
options:
  remote_addr:
    description: Name of the container.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
"""

display = Display()

#: where role local_hosts has podman write the number of a container's first process.
PIDFILE = "/run/{}.pid"
#: what `podman exec` would give a command.
ENVIRONMENT = (
    "HOME=/root",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM=xterm",
    "container=podman",
)


def _first_process(container: str) -> str:
    """Return the number of the container's systemd; AnsibleConnectionFailure where none runs."""
    try:
        process = Path(PIDFILE.format(container)).read_text(encoding="ascii").strip()
        # The number may be another process's by now, but not another systemd's.
        runs = Path(f"/proc/{process}/comm").read_text(encoding="ascii").strip() == "systemd"
    except OSError:
        runs = False
    if not runs:
        raise AnsibleConnectionFailure(f"no running container {container}: `podman ps --all` shows which there are")
    return process


class Connection(ConnectionBase):
    """A container as a host: `remote_addr` is its name, and everything runs in it as root."""

    transport = "podman_enter"
    has_pipelining = True

    def _connect(self) -> Connection:
        # Nothing is kept open: a container that is away is noticed by the first command.
        self._connected = True
        return self

    def _exec(self, argv: list[str], in_data: bytes | None = None) -> tuple[int, bytes, bytes]:
        container = self.get_option("remote_addr")
        # The containers are root's: they need a network with fixed addresses, and systemd inside.
        owner = [] if os.geteuid() == 0 else ["sudo"]
        enter = ["nsenter", f"--target={_first_process(container)}", "--all"]
        command = [*owner, *enter, "env", "--ignore-environment", *ENVIRONMENT, *argv]
        display.vvv(f"EXEC {shlex.join(command)}", host=container)
        done = subprocess.run(command, input=in_data or b"", capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    @ensure_connect
    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a shell command; return its exit status, output and errors."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._exec(["/bin/sh", "-c", cmd], in_data)

    @ensure_connect
    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a local file into the container."""
        super().put_file(in_path, out_path)
        status, _, errors = self._exec(["/bin/sh", "-c", f"cat > {shlex.quote(out_path)}"], Path(in_path).read_bytes())
        if status != 0:
            raise AnsibleError(f"{out_path} could not be written: {errors.decode(errors='replace')}")

    @ensure_connect
    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the container to this machine."""
        super().fetch_file(in_path, out_path)
        status, content, errors = self._exec(["cat", in_path])
        if status != 0:
            raise AnsibleError(f"{in_path} could not be read: {errors.decode(errors='replace')}")
        Path(out_path).write_bytes(content)

    def close(self) -> None:
        """Note that the connection is not in use; there is nothing to close."""
        self._connected = False
