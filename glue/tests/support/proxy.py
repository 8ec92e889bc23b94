"""A network path to a real server that loses what a test wants lost."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class SwallowingProxy:
    """Stands between a publisher and nsqd's TCP port: passes all but publications, which vanish on the way.

    To the publisher that is a batch whose answer does not come.
    """

    def __init__(self, upstream: str) -> None:
        host, port = upstream.split(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        #: how many publications were swallowed
        self.publications = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> SwallowingProxy:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            # Wakes whoever waits in accept() or recv().
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _run(self, what: Callable[..., None], *arguments: object, **named: object) -> None:
        thread = threading.Thread(target=what, args=arguments, kwargs=named)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._upstream)
            self._sockets += [client, server]
            self._run(self._pass_on, client, server, watch=True)
            self._run(self._pass_on, server, client, watch=False)

    def _pass_on(self, source: socket.socket, target: socket.socket, *, watch: bool) -> None:
        swallowing = False
        with suppress(OSError):
            while chunk := source.recv(65536):
                if watch and b"PUB " in chunk:
                    self.publications += 1
                    swallowing = True
                if not swallowing:
                    target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
