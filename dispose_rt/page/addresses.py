"""IP addresses, as the page compares them."""

from __future__ import annotations

import ipaddress

WILDCARDS = ("", "0.0.0.0", "::")
"""Addresses to listen on that stand for all of this machine's."""


def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address; one of IPv4 that is mapped to IPv6 (RFC 4291, 2.5.5.2) in its own form. None for a name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
