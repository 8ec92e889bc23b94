"""A real PostgreSQL on 127.0.0.1, with a role that has a password as a production one would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2

from support import artefacts
from support.processes import LocalProcess, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

USER = "slowjobs"
SUPERUSER = "postgres"
PASSWORD = "only for tests"  # noqa: S105 - the server listens on loopback for the length of a test run


class Postgresql(LocalProcess):
    """One server for all tests; each test has a database of its own."""

    def __init__(self, folder: Path) -> None:
        programs = artefacts.postgresql()
        self.port = free_port()
        # PostgreSQL refuses to run as root, and its own user must reach the data.
        user = "postgres" if os.geteuid() == 0 else None
        folder.mkdir(parents=True)
        self._data = folder / "data"
        password_file = folder / "password"
        password_file.write_text(PASSWORD, encoding="utf-8")
        if user is not None:
            for path in (folder, password_file):
                shutil.chown(path, user, user)
        self._initialise(programs, password_file, user)
        super().__init__(
            "postgresql",
            [
                str(programs / "postgres"),
                *("-D", str(self._data)),
                *("-c", "listen_addresses=127.0.0.1"),
                *("-c", f"port={self.port}"),
                *("-c", "unix_socket_directories="),
                # Only processes are killed here, never the machine: what the kernel has is safe.
                *("-c", "fsync=off"),
                *("-c", "full_page_writes=off"),
            ],
            log=folder / "postgresql.log",
            user=user,
            death_signal="QUIT",
        )

    def _initialise(self, programs: Path, password_file: Path, user: str | None) -> None:
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        subprocess.run(
            [
                *as_user,
                str(programs / "initdb"),
                *("--pgdata", str(self._data)),
                *("--username", SUPERUSER),
                *("--pwfile", str(password_file)),
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=password_file.parent,
        )

    def start(self) -> None:
        super().start()
        wait_until(self._answers, 20, "PostgreSQL to answer", while_true=self.trouble)

    def create_role(self) -> None:
        """Make the role that the services connect as; it owns its databases and nothing else."""
        self.query("postgres", f"CREATE ROLE {USER} LOGIN PASSWORD %s", (PASSWORD,), user=SUPERUSER)

    def create_database(self, name: str) -> None:
        self.query("postgres", f'CREATE DATABASE "{name}" OWNER {USER}', user=SUPERUSER)

    def stop(self, signal_: signal.Signals = signal.SIGINT, seconds: float = 30) -> int:
        """Stop at once with all transactions rolled back (SIGINT); SIGTERM would wait for every client to leave."""
        return super().stop(signal_, seconds)

    def dsn(self, database: str) -> str:
        """Return how to connect, without the password."""
        return f"host=127.0.0.1 port={self.port} dbname={database} user={USER}"

    def connect(self, database: str, *, user: str = USER) -> Any:
        connection = psycopg2.connect(self.dsn(database), user=user, password=PASSWORD, connect_timeout=5)
        connection.autocommit = True
        return connection

    def query(
        self, database: str, sql: str, parameters: tuple[object, ...] = (), *, user: str = USER
    ) -> list[tuple[Any, ...]]:
        with closing(self.connect(database, user=user)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def _answers(self) -> bool:
        try:
            return self.query("postgres", "SELECT 1", user=SUPERUSER) == [(1,)]
        except psycopg2.OperationalError:
            return False
