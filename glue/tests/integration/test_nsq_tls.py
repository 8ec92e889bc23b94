"""Our nsqd client over TLS: both sides are checked, and nothing goes on in clear text."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from slowjobs import nsq, settings
from support.nsqd import Nsqd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.services import Services

pytestmark = pytest.mark.integration

TOPIC, CHANNEL = "topic", "pool"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def nsqd(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    folder: Path = tmp_path_factory.mktemp("nsqd-tls")
    ours = authority.issue_cert("127.0.0.1")
    ours.private_key_pem.write_to_path(folder / "key.pem")
    ours.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = Nsqd(
        folder,
        flags=[
            f"--tls-cert={folder / 'cert.pem'}",
            f"--tls-key={folder / 'key.pem'}",
            f"--tls-root-ca-file={folder / 'ca.pem'}",
            "--tls-client-auth-policy=require-verify",
            # TLS for TCP; the HTTP API stays as it is.
            "--tls-required=tcp-https",
            "--tls-min-version=tls1.2",
        ],
    )
    server.start()
    server.create(TOPIC, CHANNEL)
    yield server
    server.discard()


def _context(trusted: trustme.CA, known_to: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    trusted.configure_trust(context)
    known_to.issue_cert("worker1").configure_cert(context)
    return context


async def _open(address: str, context: ssl.SSLContext | None) -> nsq.Subscription:
    host, port = address.split(":")
    return await nsq.Subscription.open(
        settings.Address(host, int(port)), host="svc506", topic=TOPIC, channel=CHANNEL, client_id="tests", tls=context
    )


def test_messages_flow_over_tls(nsqd: Nsqd, authority: trustme.CA) -> None:
    nsqd.publish(TOPIC, b"{}")

    async def _flow() -> None:
        subscription = await _open(nsqd.tcp_address, _context(authority, authority))
        subscription.ready(1)
        async with asyncio.timeout(10):
            message = await subscription.receive()
            assert message is not None
            subscription.finish(message)
            subscription.leave()
            assert await subscription.receive() is None
        subscription.close()
        await asyncio.sleep(0.2)

    asyncio.run(_flow())
    assert nsqd.outstanding(TOPIC) == 0


def test_an_nsqd_of_another_authority_is_refused(nsqd: Nsqd, authority: trustme.CA) -> None:
    with pytest.raises(nsq.ERRORS, match="certificate verify failed"):
        asyncio.run(_open(nsqd.tcp_address, _context(trustme.CA(), authority)))


def test_a_refused_certificate_of_ours_is_named(nsqd: Nsqd, authority: trustme.CA) -> None:
    with pytest.raises(nsq.ERRORS, match="is our certificate one of its CA"):
        asyncio.run(_open(nsqd.tcp_address, _context(authority, trustme.CA())))


def test_an_nsqd_without_tls_is_refused(services: Services, authority: trustme.CA) -> None:
    with pytest.raises(nsq.ERRORS, match="offers no TLS"):
        asyncio.run(_open(services.nsqd.tcp_address, _context(authority, authority)))
