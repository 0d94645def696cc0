"""What a key may do. Pure. Empty scopes restrict nothing; an address that is unknown fits no restriction."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from extproc.accounts.model import Key
from extproc.errors import ClientError

NETWORK_SETS_MAX = 4_096  # parsed lists of networks kept; keys with such a scope are few
NETWORKS_MAX = 100  # of one key: each is compared on each request

Network = IPv4Network | IPv6Network


class Fault(StrEnum):
    """Why a key may not."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    NETWORK = "network"
    MODEL = "model"


def standing(key: Key, *, unix_ms: int) -> Fault | None:
    """Is it still a key at this time? ``admit`` asks again, with the state and the clock of Redis."""
    if key.revoked:
        return Fault.REVOKED
    return Fault.EXPIRED if key.expires_ms and key.expires_ms <= unix_ms else None


def address(key: Key, client_ip: str) -> Fault | None:
    """May it come from there? A v4 address mapped into v6 is the v4 address."""
    if not key.networks:
        return None
    try:
        client = _unmapped(ip_address(client_ip))
    except ValueError:
        return Fault.NETWORK
    return None if any(client in network for network in parse_networks(key.networks)) else Fault.NETWORK


def model(key: Key, name: str) -> Fault | None:
    """May it use the model of this (canonical) name?"""
    return None if not key.models or name in key.models else Fault.MODEL


def may_use(key: Key, name: str, *, open_to_sandbox: bool) -> bool:
    """The same, and a sandbox key only a model that is marked for it."""
    return model(key, name) is None and (open_to_sandbox or not key.sandbox)


@lru_cache(maxsize=NETWORK_SETS_MAX)
def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """CIDRs or single addresses, v4-mapped ones as v4. ``ValueError`` for anything else, host bits included: ``10.0.0.1/8`` is a typo."""
    if len(texts) > NETWORKS_MAX:
        raise ValueError(f"{len(texts)} networks are more than {NETWORKS_MAX}")
    return tuple(_unmapped_network(ip_network(text)) for text in texts)


def key_fault(key: Key, *, client_ip: str, unix_ms: int) -> None:
    """Refuse a key that is over, or comes from elsewhere. :class:`ClientError` 401 or 403."""
    match standing(key, unix_ms=unix_ms):
        case Fault.REVOKED:
            raise ClientError("This API key has been revoked.", status=401, type="authentication_error", code="invalid_api_key")
        case Fault.EXPIRED:
            raise ClientError("This API key has expired.", status=401, type="authentication_error", code="invalid_api_key")
    if address(key, client_ip) is not None:
        raise ClientError(
            "This API key may not be used from your address.", status=403, type="permission_error", code="address_not_allowed"
        )


def model_fault(key: Key, name: str, *, open_to_sandbox: bool) -> None:
    """Refuse a model outside the key's scope. :class:`ClientError` 403."""
    if not may_use(key, name, open_to_sandbox=open_to_sandbox):
        message = f"This {'sandbox' if key.sandbox else 'API'} key may not use the model {name!r}; `GET /v1/models` lists what it may."
        raise ClientError(message, status=403, type="permission_error", param="model", code="model_not_allowed")


def _unmapped(client: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
    return mapped or client


def _unmapped_network(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((int(network.network_address.ipv4_mapped), network.prefixlen - 96))
    return network
