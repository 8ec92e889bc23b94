"""GROBID as its documentation says that it answers; it reads no PDF."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEI = '<?xml version="1.0" encoding="UTF-8"?><TEI xmlns="http://www.tei-c.org/ns/1.0"><text>\u00fcber</text></TEI>'
_SUCCESS = web.answer(body=TEI, content_type="application/xml")
_VERSION = web.answer(body=json.dumps({"version": "0.9.0", "revision": "0.9.0-70-g94429f4e2"}))


@dataclass
class Grobid:
    """``answered``: to the next PDFs. ``pdfs`` and ``parameters``: what came, of the latter name -> all values."""

    site: web.Site
    answered: web.Route = _SUCCESS
    version: web.Route = _VERSION
    pdfs: list[bytes] = field(default_factory=list)
    parameters: dict[str, list[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.site.url("")

    def _process(self, request: web.Request, write: Callable[[bytes], None]) -> None:
        form = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode() + request.body
        self.parameters.clear()
        for part in email.message_from_bytes(form, policy=email.policy.HTTP).iter_parts():
            name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            if name == "input":
                self.pdfs.append(content)
            else:
                self.parameters.setdefault(str(name), []).append(content.decode())
        web.send(self.answered, request, write)


@contextlib.contextmanager
def serve() -> Iterator[Grobid]:
    with web.serve() as site:
        grobid = Grobid(site)
        site.routes["/api/version"] = lambda request, write: web.send(grobid.version, request, write)
        site.routes["/api/processFulltextDocument"] = grobid._process
        yield grobid
