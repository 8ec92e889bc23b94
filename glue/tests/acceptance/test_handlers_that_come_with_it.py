"""The handlers of slowjobs.handlers, in the processes and with the imports that a pool gives them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support import grobid, toml, web
from support.system import SLOWJOBS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.acceptance

NOWHERE = "127.0.0.1:9"
PDF = b"%PDF-1.5\n" + bytes(range(256))


def run_try(folder: Path, kind: dict[str, Any], handler: str, options: dict[str, Any], request: dict[str, Any]) -> Any:
    document = {
        "service": "worker",
        "host": "worker1",
        "state_address": NOWHERE,
        "kafka": {"properties": {"bootstrap.servers": NOWHERE}},
        "nsqd": {"active": "svc506", "hosts": {"svc506": {"tcp_address": NOWHERE, "http_address": NOWHERE}}},
        "kinds": {"kind": kind},
        "lanes": {"lane": {"kind": "kind", "pool": "pool"}},
        "pool": {
            "name": "pool",
            "result_topic": "results",
            "directory": str(folder),
            "handler": {"python": handler, "interpreter": sys.executable, "options": options},
        },
    }
    config = folder / "worker-pool.toml"
    config.write_text(toml.dumps(document), encoding="utf-8")
    command = [str(SLOWJOBS), "try", "pool", "-", "--config", str(config), "--json"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    [tried] = json.loads(done.stdout)["tries"]
    return tried["result"]


def test_file_ingest_runs_in_a_pools_processes(tmp_path: Path) -> None:
    with web.serve() as site:
        site.routes["/"] = web.page("<meta name=citation_pdf_url content=/7.pdf>")
        site.routes["/7.pdf"] = web.answer(body=PDF)
        request = {"link_source": "doi", "link_source_id": "10.1/7", "ingest_type": "pdf", "base_url": site.url("/")}
        result = run_try(
            tmp_path,
            {"type": "ingest"},
            "slowjobs.handlers.file_ingest:FileIngest",
            {"allow_private_addresses": True},
            request,
        )
    assert result["status"] == "success"
    assert result["file_meta"]["size_bytes"] == len(PDF)


def test_grobid_runs_in_a_pools_processes(tmp_path: Path) -> None:
    sha1hex = hashlib.sha1(PDF, usedforsecurity=False).hexdigest()
    request = {"url": "http://example.org/7.pdf", "datetime": "20260102030405", "sha1hex": sha1hex}
    with grobid.serve() as server, web.serve() as wayback:
        wayback.routes["/20260102030405id_/http://example.org/7.pdf"] = web.answer(body=PDF)
        options = {"server": server.url, "wayback_url": wayback.url("")}
        kind = {"type": "job", "key": ["sha1hex"]}
        result = run_try(tmp_path, kind, "slowjobs.handlers.grobid:Grobid", options, request)
    assert result["status"] == "success"
    assert result["tei_xml"] == grobid.TEI


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("file_ingest", {"certifi", "lxml", "pycurl"}),
        # requests and warcio bring the others.
        ("grobid", {"certifi", "charset_normalizer", "idna", "requests", "six", "urllib3", "warcio"}),
    ],
)
def test_a_handler_imports_nothing_but_its_packages_and_the_outcomes(module: str, packages: set[str]) -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        f"import slowjobs.handlers.{module}\n"
        "print(*(n for n, m in sys.modules.items() if n not in before and getattr(m, '__file__', None)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    imported = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    of_slowjobs = {name for name in imported if name.startswith("slowjobs.") and ".handlers" not in name}
    assert of_slowjobs == {"slowjobs.outcomes"}
    assert {name.partition(".")[0] for name in imported} - {"slowjobs"} <= packages
