"""A web server whose every byte is a test's: well-behaved answers, and those that break rules."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


@dataclass
class Request:
    """What a client asked. ``headers``: names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


#: bytes to send, or what sends them itself.
Route = bytes | Callable[[Request, Callable[[bytes], None]], None]


def answer(status: int = 200, body: bytes | str = b"", **headers: object) -> bytes:
    """Return an HTTP answer; ``content_type="..."`` is a header, too."""
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"{name.replace('_', '-')}: {value}" for name, value in {"content_length": len(content), **headers}.items()
    ]
    return "\r\n".join([f"HTTP/1.1 {status} -", *lines, "connection: close", "", ""]).encode("latin-1") + content


def redirect(location: str, status: int = 302, **headers: object) -> bytes:
    return answer(status, location=location, **headers)


def page(html: str, **headers: object) -> bytes:
    return answer(200, html, content_type="text/html; charset=utf-8", **headers)


@dataclass
class Site:
    """``routes``: path -> answer, 404 for others. ``requests``: what was asked so far."""

    port: int
    scheme: str = "http"
    routes: dict[str, Route] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


def send(route: Route, request: Request, write: Callable[[bytes], None]) -> None:
    if isinstance(route, bytes):
        write(route)
    else:
        route(request, write)


@contextlib.contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve a site on the loopback address, with TLS if there is a ``context``."""

    class Exchange(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that has had enough
                request = _read(self.rfile)
                if request is None:
                    return
                site.requests.append(request)
                send(site.routes.get(request.path, answer(404, "no such page")), request, self.wfile.write)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def get_request(self) -> tuple[object, object]:
            connection, address = super().get_request()
            return (context.wrap_socket(connection, server_side=True) if context else connection), address

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # tests look at what the client says

    with Server(("127.0.0.1", 0), Exchange) as server:
        site = Site(server.server_address[1], "https" if context else "http")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def _read(stream: object) -> Request | None:
    first = stream.readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers: dict[str, str] = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(first[0], first[1], headers, stream.read(int(headers.get("content-length", 0))))
