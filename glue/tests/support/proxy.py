"""Network paths to a real nsqd: one that breaks when a test wants it, one on which a command gets lost."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Proxy:
    """Stands between a client and nsqd's TCP port, and passes everything on until the connections are broken."""

    def __init__(self, upstream: str) -> None:
        host, port = upstream.split(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self.break_connections()
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def break_connections(self) -> None:
        """End every connection that is open; new ones are accepted."""
        for each in self._sockets:
            _shut(each)

    def _passes(self, chunk: bytes) -> bool:  # noqa: ARG002 - for those that look
        """Tell whether ``chunk``, and what comes after it on its connection, reaches nsqd."""
        return True

    def _run(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                _shut(client)
                continue
            self._sockets.append(server)
            self._run(self._pass_on, client, server, self._passes)
            self._run(self._pass_on, server, client, lambda _: True)

    def _pass_on(self, source: socket.socket, target: socket.socket, passes: Callable[[bytes], bool]) -> None:
        passing = True
        try:
            while chunk := source.recv(65536):
                passing = passing and passes(chunk)
                if passing:
                    target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _shut(target)  # one that was killed with something unread resets its connection


class SwallowingProxy(Proxy):
    """Passes all but one command to nsqd, which vanishes on the way with all that follows it on its connection.

    To a publisher whose ``PUB `` vanishes that is a batch whose answer does not come.
    """

    def __init__(self, upstream: str, command: bytes) -> None:
        super().__init__(upstream)
        self._command = command
        #: connections on which the command vanished
        self.swallowed = 0

    def __enter__(self) -> SwallowingProxy:
        super().__enter__()
        return self

    def _passes(self, chunk: bytes) -> bool:
        if self._command not in chunk:
            return True
        self.swallowed += 1
        return False


def _shut(socket_: socket.socket) -> None:
    """Wake whoever waits in accept() or recv()."""
    with suppress(OSError):
        socket_.shutdown(socket.SHUT_RDWR)
