"""What a key may do. Pure: facts in, yes or no out."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from extproc.accounts.model import Key


def is_expired(key: Key, unix_ms: int) -> bool:
    """``expires_ms`` 0 = never."""
    return bool(key.expires_ms) and unix_ms >= key.expires_ms


def may_use(key: Key, model: str) -> bool:
    """``model`` is the catalog's name, never an alias."""
    return not key.models or model in key.models


def may_come_from(key: Key, client_ip: str) -> bool:
    """Against the key's networks (CIDR); v4-mapped v6 counts as v4. An address that is unknown or no address is in no network."""
    if not key.networks:
        return True
    try:
        address = ip_address(client_ip)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ip_network(network, strict=False) for network in key.networks)
