#!/usr/bin/env python3
"""Answer as GROBID's documentation says that it answers, and read nothing: a part of the demo, not GROBID.

answer_as_grobid.py ADDRESS PORT
"""

import hashlib
import http.server
import json
import sys
import threading
import time

VERSION = "0.0.0-demo"
#: PDFs at once; more are told that all threads are in use.
THREADS = 3
SECONDS_A_PDF = 0.3
TEI = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><fileDesc><titleStmt><title>Not read</title></titleStmt>
<sourceDesc><note>The demo answered here, not GROBID: it counted {size} bytes of form, sha1 {sha1}.</note></sourceDesc>
</fileDesc></teiHeader></TEI>
"""

free = threading.BoundedSemaphore(THREADS)


class Handler(http.server.BaseHTTPRequestHandler):
    """The two paths that slowjobs asks for."""

    def do_GET(self) -> None:
        """Tell the version."""
        if self.path == "/api/version":
            self._answer(200, "application/json", json.dumps({"version": VERSION, "revision": VERSION}))
        else:
            self._answer(404, "text/plain", "not here")

    def do_POST(self) -> None:
        """Answer to a PDF."""
        form = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/api/processFulltextDocument":
            self._answer(404, "text/plain", "not here")
        elif not free.acquire(blocking=False):
            self._answer(503, "text/plain", "all threads are in use")
        else:
            try:
                self._process(form)
            finally:
                free.release()

    def _process(self, form: bytes) -> None:
        time.sleep(SECONDS_A_PDF)
        if b"%PDF-" in form:
            sha1 = hashlib.sha1(form, usedforsecurity=False).hexdigest()
            self._answer(200, "application/xml", TEI.format(size=len(form), sha1=sha1))
        else:
            self._answer(500, "text/plain", "[BAD_INPUT_DATA] no PDF")

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    address, port = sys.argv[1:]
    http.server.ThreadingHTTPServer((address, int(port)), Handler).serve_forever()
