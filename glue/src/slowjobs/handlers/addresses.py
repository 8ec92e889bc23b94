"""Which addresses are on the open internet."""

from __future__ import annotations

import ipaddress

#: all of IPv6 that is handed out to networks; beyond it are local addresses, multicast and IPv4 in disguise.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
#: of RFC 6052: the last 32 bits are an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Tell whether an address may be asked on a stranger's word.

    Loopback, private, link-local, shared, multicast, reserved and documentation addresses may not, in whatever form
    IPv6 wraps them. ValueError for what is no address.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    wrapped = _wrapped(address)
    if wrapped is not None:
        return wrapped.is_global and not wrapped.is_multicast
    return address in _GLOBAL_UNICAST and address.is_global


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to ``address`` end at, if there is one."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.sixtofour or (teredo[1] if teredo else None)
