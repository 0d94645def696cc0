"""Settings: ``extproc.yaml`` and ``EXTPROC_<SECTION>__<KEY>``, read once into one frozen object and handed down in groups.

Each group below is a section of the file and each field a key of it: default, type and bounds stand in one place. Reading reports every
fault at once (:class:`~extproc.errors.ConfigError`). Secrets come from the environment or from a file that a ``…_file`` key names, never
from the file itself. Relative paths are taken from the directory of the file. What the keys mean: ``docs/reference/configuration.md``.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extproc import settings_kit as kit
from extproc.errors import ConfigError, Fault
from extproc.exchange.policy import Bounds, Policy
from extproc.money.amount import format_amount
from extproc.yamlfile import Cursor, Node, parse, read, refusal

ENV_PREFIX = "EXTPROC_"
SECRET_BYTES_MAX = 4096  # longer is not a password but the wrong file
SALT_KEY_CHARS_MIN = 16  # who knows it can find other payers' prompts in the caches of backends
UNIX_PATH_BYTES_MAX = 107  # sockaddr_un, less its final NUL
WORKERS_MAX = 256
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Mutual TLS on the listener of the gate."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path


def _read_tls(at: Cursor, otherwise: Tls | None) -> Tls | None:
    names = ("cert_file", "key_file", "client_ca_file")
    found = {name: kit.as_path(member) for name, member in at.members(names, required=names).items()}
    paths = {name: path for name, path in found.items() if path is not None}
    return Tls(**paths) if len(paths) == len(names) else otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where Envoy finds the workers, and operators the ops port."""

    transport: str = kit.word("auto", "lean", "grpcio")
    address: str = kit.text("unix:run/gate-{worker}.sock", kit.check_address, path=True)
    socket_mode: int = kit.read_by(0o660, kit.read_mode, raw=True, show=lambda mode: f"{mode:04o}")
    workers: int = kit.number(0, 0, WORKERS_MAX)
    ops_address: str = kit.text("127.0.0.1:9910", kit.check_host_port)
    allowed_uids: frozenset[int] | None = kit.read_by(None, kit.read_uids, null=True, show=lambda uids: sorted(uids) if uids else None)
    insecure_loopback: bool = kit.flag(default=False)
    tls: Tls | None = kit.read_by(None, _read_tls, null=True, path=True)  # noqa: RUF009 - a field
    max_open_exchanges: int = kit.number(20_000, 1, 1_000_000)

    @property
    def worker_count(self) -> int:
        """How many workers run: as set, or one per core that this process may use."""
        return self.workers or min(len(os.sched_getaffinity(0)), WORKERS_MAX)

    @property
    def chosen_transport(self) -> tuple[str, str]:
        """Which transport serves Envoy, and why: ``auto`` is lean."""
        if self.transport != "auto":
            return self.transport, "listen.transport says so"
        if self.tls is not None:
            return "lean", "it asks for a client certificate (listen.tls) and for ALPN h2"
        return "lean", "workers listen on this machine only"

    def address_of(self, worker: int) -> str:
        """The address of one worker, counted from 0."""
        return self.address.replace("{worker}", str(worker))


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogFiles:
    """Section ``catalog``. ``envoy_files`` are only read by ``check``."""

    file: Path = kit.path("models.yaml", live=True)  # noqa: RUF009 - a field
    envoy_files: tuple[Path, ...] = kit.read_by(
        (Path("envoy/envoy.yaml"), Path("envoy/routes.yaml"), Path("envoy/clusters.yaml")), kit.read_paths, path=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Admission."""

    url: str = kit.text("redis://127.0.0.1:6379/0", kit.check_redis_url)
    password_file: Path | None = kit.path(None)  # noqa: RUF009 - a field
    password: str | None = kit.secret("password_file")
    timeout_ms: int = kit.number(500, 10, 60_000)
    pipeline_max: int = kit.number(256, 1, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """The ledger."""

    dsn: str = kit.text("postgresql:///extproc", kit.check_dsn)
    password_file: Path | None = kit.path(None)  # noqa: RUF009 - a field
    password: str | None = kit.secret("password_file")
    pool_max: int = kit.number(4, 1, 100)
    statement_timeout_ms: int = kit.number(5_000, 100, 600_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Endings that PostgreSQL has not confirmed."""

    dir: Path = kit.path("data/outbox")  # noqa: RUF009 - a field
    bytes_max: int = kit.number(1_073_741_824, 1_048_576, 2**44)
    reply_waits_for: str = kit.word("either", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is asking, and from where."""

    key_header: str = kit.text("authorization", pattern=r"[a-z0-9][a-z0-9-]{0,63}", what="a header name in lower case")
    cache_ttl_s: int = kit.number(60, 1, 3_600)
    negative_cache_ttl_s: int = kit.number(5, 1, 600)
    cache_salt_key_file: Path | None = kit.path(None)  # noqa: RUF009 - a field
    cache_salt_key: str | None = kit.secret("cache_salt_key_file")
    client_ip: str = kit.text("source", pattern=r"source|xff:[1-9]", what="source or xff:1 … xff:9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """Leases of holds. ``entry_nanos`` is ``entry`` in the file."""

    entry_nanos: int = kit.read_by(1_000_000, kit.read_amount, name="entry", raw=True, show=format_amount)
    lease_s: int = kit.number(60, 2, 3_600)
    beat_s: int = kit.number(5, 1, 600)
    reap_every_s: int = kit.number(2, 1, 600)
    grace_s: int = kit.number(8, 1, 600)
    witness_grace_s: int = kit.number(5, 1, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeys:
    """Section ``policy``. ``stores_away_credit_nanos`` is ``stores_away`` in the file; ``None`` = closed."""

    over_balance: str = kit.word("reject", "clamp", live=True)
    clamp_output_tokens_min: int = kit.number(256, 1, 1_000_000, live=True)
    out_of_money_status: int = kit.read_by(402, kit.read_status, live=True)
    ended_early: str = kit.word("actual_so_far", "input_only", "full", live=True)
    abort_before_response: str = kit.word("input", "void", live=True)
    no_usage: str = kit.word("count", "hold", live=True)
    unknown_fields: str = kit.word("strip", "reject", live=True)
    stores_away_credit_nanos: int | None = kit.read_by(None, kit.read_stores_away, name="stores_away", live=True, show=kit.show_stores_away)
    trust_factor: int | None = kit.number(None, 2, 1_000_000, live=True)
    shadow: bool = kit.flag(default=False, live=True)
    topup_url: str | None = kit.text(None, pattern=r"https?://[^\s\x00-\x1f]{1,2000}", what="an http(s) address", live=True)

    def policy(self) -> Policy:
        """What an exchange pins at its headers."""
        return Policy(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Policy)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Sizes of request bodies."""

    bytes_max: int = kit.number(1_048_576, 1_024, 33_000_000)  # a message of Envoy may have 32 MiB (edge, MESSAGE_BYTES_MAX)
    json_bytes_max: int = kit.number(8_388_608, 1_024, 33_000_000)  # 8 MiB of the smallest texts are 120 MB of memory
    count_exactly_bytes_max: int = kit.number(262_144, 0, 2**30)
    offload_bytes: int = kit.number(16_384, 0, 65_536)  # a longer text blocks the loop for milliseconds
    tokenize_urls: kit.NamedUrls = kit.read_by((), kit.read_urls, show=kit.show_urls)  # noqa: RUF009 - a field


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """The second witness."""

    file: Path | None = kit.path(None)  # noqa: RUF009 - a field


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Leaving."""

    grace_s: int = kit.number(600, 0, 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The log of the processes, on stderr."""

    level: str = dataclasses.field(
        default="info", metadata={"key": kit.Key(read=lambda at, otherwise: at.text(otherwise, choices=_LEVELS), raw=True)}
    )
    format: str = kit.word("json", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settler:
    """Poster, reaper, reconciler."""

    enabled: bool = kit.flag(default=True)
    batch_rows: int = kit.number(1_000, 1, 10_000)
    batch_wait_ms: int = kit.number(50, 0, 10_000)
    reconcile_full_at: str = kit.text("03:30", pattern=r"([01][0-9]|2[0-3]):[0-5][0-9]", what='a time of day such as "03:30"')
    time_zone: str = kit.text("Etc/UTC", kit.check_time_zone)
    backend_metrics: kit.NamedUrls = kit.read_by((), kit.read_urls, show=kit.show_urls)  # noqa: RUF009 - a field


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it. ``file`` is where it came from; ``None`` = defaults and environment only."""

    listen: Listen = Listen()
    catalog: CatalogFiles = CatalogFiles()
    redis: Redis = Redis()
    postgres: Postgres = Postgres()
    outbox: Outbox = Outbox()
    identity: Identity = Identity()
    holds: Holds = Holds()
    policy: PolicyKeys = PolicyKeys()
    body: Body = Body()
    access_log: AccessLog = AccessLog()
    drain: Drain = Drain()
    log: Log = Log()
    settler: Settler = Settler()
    file: Path | None = None

    def bounds(self) -> Bounds:
        """Sizes and amounts that an exchange needs to know."""
        return Bounds(
            body_bytes_max=self.body.bytes_max,
            json_bytes_max=self.body.json_bytes_max,
            count_exactly_bytes_max=self.body.count_exactly_bytes_max,
            offload_bytes=self.body.offload_bytes,
            entry_nanos=self.holds.entry_nanos,
            cache_salt_key=(self.identity.cache_salt_key or "").encode(),
            counted_upstream=frozenset(dict(self.body.tokenize_urls)),
        )

    def masked(self) -> dict[str, dict[str, Any]]:
        """Section → key → value, in plain types, without a single secret: to be printed and served."""
        return {section: {name: _plain(key, value) for name, key, value in _keys(getattr(self, section))} for section in SECTIONS}


SECTIONS: Mapping[str, type] = {
    field.name: type(field.default) for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.default)
}


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read ``path`` (``None``: nothing but defaults), lay ``environ`` over it. :class:`ConfigError` with every fault."""
    root = read(path) if path is not None else Node(value={}, file="(defaults)", line=0)
    base = path.absolute().parent if path is not None else Path.cwd()
    top = Cursor(root)
    sections = top.members(["version", *SECTIONS])
    version = sections.pop("version", None)
    if version is not None and version.node.value != 1:
        version.fault("this program reads version 1")
    overrides = _overrides(environ, top.faults)
    groups = {name: _read_group(name, sections.get(name), overrides.get(name, {}), base, top.faults) for name in SECTIONS}
    settings = Settings(file=path.absolute() if path is not None else None, **groups)
    for section, key, message in _cross_faults(settings):
        node = overrides.get(section, {}).get(key) or root.get(section, key) or root.get(section) or root
        top.faults.append(Fault(file=node.file, line=node.line, message=f"{section}.{key}: {message}"))
    if top.faults:
        raise refusal(top.faults)
    return settings


def restart_needed(old: Settings, new: Settings) -> tuple[str, ...]:
    """``section.key`` of everything that differs and does not change on reload."""
    return tuple(
        f"{section}.{name}"
        for section in SECTIONS
        for (name, key, before), (_, _, after) in zip(_keys(getattr(old, section)), _keys(getattr(new, section)), strict=True)
        if before != after and not key.live
    )


def live_keys() -> tuple[str, ...]:
    """``section.key`` of everything that changes on reload."""
    return tuple(f"{section}.{name}" for section in SECTIONS for name, key, _ in _keys(SECTIONS[section]()) if key.live)


def _keys(group: Any) -> Iterator[tuple[str, kit.Key, Any]]:
    """Name in the file, how it is read, value."""
    for field in dataclasses.fields(group):
        key: kit.Key = field.metadata["key"]
        yield key.name or field.name, key, getattr(group, field.name)


def _overrides(environ: Mapping[str, str], faults: list[Fault]) -> dict[str, dict[str, Node]]:
    """``EXTPROC_LISTEN__WORKERS=4`` → ``{"listen": {"workers": Node(4)}}``. Variables without ``__`` are none of ours."""
    found: dict[str, dict[str, Node]] = {}
    for variable, text in sorted(environ.items()):
        section, double, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        if not variable.startswith(ENV_PREFIX) or not double:
            continue
        keys = {key_name: key for key_name, key, _ in _keys(SECTIONS[section]())} if section in SECTIONS else {}
        if name not in keys:
            what = f"section {section} has no key {name}" if keys else f"there is no section {section}"
            faults.append(Fault(file=variable, line=0, message=what))
            continue
        try:
            node = _env_node(keys[name], variable, text)
        except ConfigError as error:
            faults.extend(error.faults)
            continue
        found.setdefault(section, {})[name] = node
    return found


def _env_node(key: kit.Key, variable: str, text: str) -> Node:
    if key.null and text in ("", "null"):
        return Node(value=None, file=variable, line=0)
    if key.raw:
        return Node(value=text, file=variable, line=0)
    return dataclasses.replace(parse(text, file=variable), line=0)


def _read_group(name: str, at: Cursor | None, overrides: Mapping[str, Node], base: Path, faults: list[Fault]) -> Any:
    """One section: the file's members, the environment's above them, defaults for the rest."""
    group = SECTIONS[name]()
    members: dict[str, Cursor] = {}
    if at is not None and not at.is_null:
        members = at.members([key_name for key_name, _, _ in _keys(group)])
        _refuse_secrets(name, group, members)
    members |= {key_name: Cursor(node, f"{name}.{key_name}", faults) for key_name, node in overrides.items()}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        key: kit.Key = field.metadata["key"]
        member = members.get(key.name or field.name)
        absent = member is None or (key.null and member.is_null)
        value = field.default if absent else key.read(member, field.default)  # type: ignore[arg-type]
        values[field.name] = _resolved(value, base) if key.path else value
        if key.secret_file:
            values[field.name] = value or _secret_of(values[key.secret_file], members, key)
    return type(group)(**values)


def _refuse_secrets(section: str, group: Any, members: dict[str, Cursor]) -> None:
    """Drop every secret that stands in the file itself, as a key or inside of an address, and say so."""
    for name, key, _ in _keys(group):
        member = members.get(name)
        if member is None:
            continue
        if key.secret_file or (isinstance(member.node.value, str) and kit.masked(member.node.value) != member.node.value):
            variable = f"{ENV_PREFIX}{section}__{name}".upper()
            file_key = key.secret_file or "password_file"
            member.fault(f"a secret has no place in this file; set {variable} or {section}.{file_key}")
            del members[name]


def _secret_of(path: Path | None, members: Mapping[str, Cursor], key: kit.Key) -> str | None:
    """The secret in the file that the environment or the ``…_file`` key names."""
    if path is None:
        return None
    at = members[key.secret_file]
    try:
        with path.open("rb") as file:
            raw = file.read(SECRET_BYTES_MAX + 1)
        secret = raw.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        at.fault(f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}")
        return None
    if not secret or len(raw) > SECRET_BYTES_MAX:
        at.fault(f"{path} holds no secret of 1 to {SECRET_BYTES_MAX} bytes")
        return None
    return secret


def _resolved(value: Any, base: Path) -> Any:
    """Relative paths become absolute: those of files, of lists of files, and of Unix sockets."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, tuple):
        return tuple(base / path for path in value)
    if isinstance(value, Tls):
        return Tls(**{field.name: base / getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, str) and value.startswith("unix:"):
        return f"unix:{base / value.removeprefix('unix:')}"
    return value


def _cross_faults(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """What only two keys together can get wrong: section, key, message."""
    yield from _listen_faults(settings.listen)
    holds = settings.holds
    if 2 * holds.beat_s > holds.lease_s:
        yield "holds", "beat_s", f"two beats must fit into lease_s ({holds.lease_s}), else one lost beat ends a live hold"
    if holds.reap_every_s > holds.grace_s:
        yield "holds", "reap_every_s", f"is above grace_s ({holds.grace_s}): a hold could not be expired in time"
    if holds.witness_grace_s >= holds.lease_s:
        yield "holds", "witness_grace_s", f"must be below lease_s ({holds.lease_s}): a witness lowers the lease"
    if settings.redis.timeout_ms >= 1_000 * holds.beat_s:
        yield "redis", "timeout_ms", f"must be below holds.beat_s ({holds.beat_s} s): beats would pile up"
    if settings.body.offload_bytes > settings.body.bytes_max:
        yield "body", "offload_bytes", f"is above bytes_max ({settings.body.bytes_max})"
    if settings.policy.shadow and settings.policy.over_balance == "clamp":
        yield "policy", "shadow", "changes no request, but over_balance: clamp would"
    salt_key = settings.identity.cache_salt_key
    if salt_key is not None and len(salt_key) < SALT_KEY_CHARS_MIN:
        yield "identity", "cache_salt_key_file", f"the key has fewer than {SALT_KEY_CHARS_MIN} characters: it could be guessed"
    for section, group in (("redis", settings.redis), ("postgres", settings.postgres)):
        address = group.url if isinstance(group, Redis) else group.dsn
        if group.password is not None and kit.masked(address) != address:
            yield section, "password_file", "the address has a password already: give one of both"


def _listen_faults(listen: Listen) -> Iterator[tuple[str, str, str]]:
    unix = listen.address.startswith("unix:")
    if listen.worker_count > 1 and "{worker}" not in listen.address:
        yield "listen", "address", f"{listen.worker_count} workers need {{worker}} in it: one address each"
    path_bytes = len(listen.address_of(listen.worker_count - 1).removeprefix("unix:").encode())
    if unix and path_bytes > UNIX_PATH_BYTES_MAX:
        yield "listen", "address", f"a socket's path has {UNIX_PATH_BYTES_MAX} bytes at most, this one has {path_bytes}"
    if not unix and listen.tls is None and not _is_loopback(listen.address):
        yield "listen", "address", "plain TCP is for loopback only; use a Unix socket, or set tls"
    elif not unix and listen.tls is None and not listen.insecure_loopback:
        yield "listen", "address", "everybody on this machine could connect: say insecure_loopback: true, or use a Unix socket"
    if listen.allowed_uids and not unix:
        yield "listen", "allowed_uids", "only a Unix socket knows its peer's user"
    elif listen.allowed_uids and listen.chosen_transport[0] == "grpcio":
        yield "listen", "allowed_uids", "grpcio cannot ask who its peer is; use transport lean"
    if listen.address == listen.ops_address:
        yield "listen", "ops_address", "is the address of the gate"


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _plain(key: kit.Key, value: Any) -> Any:
    """As it would stand in the file; secrets masked."""
    if key.secret_file:
        return kit.MASK if value else None
    if key.show is not None:
        return key.show(value)
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if isinstance(value, Tls):
        return {field.name: str(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    return kit.masked(value) if isinstance(value, str) else value
