"""The settings: the shipped example is the schema and the defaults; every slip is reported, all at once, with its place."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from extproc import settings as module
from extproc.errors import ConfigError
from extproc.exchange.policy import Bounds, Policy
from extproc.settings import Settings, Tls, live_keys, load_settings, restart_needed
from extproc.yamlfile import read

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "extproc.yaml"
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"
ONE_WORKER = {"EXTPROC_LISTEN__WORKERS": "1"}


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    (tmp_path / "extproc.yaml").write_text(text)
    return load_settings(tmp_path / "extproc.yaml", environ or {})


def faults_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[tuple[str, int, str]]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ)
    return [(Path(fault.file).name, fault.line, fault.message) for fault in caught.value.faults]


def test_the_example_shows_every_key_with_its_default():
    shown = {section: node.plain() for section, node in read(EXAMPLE).items() if section != "version"}
    assert {section: sorted(keys) for section, keys in shown.items()} == {
        section: sorted(name for name, key, _ in module._keys(group()) if not key.secret_file) for section, group in module.SECTIONS.items()
    }
    loaded, defaults = load_settings(EXAMPLE, {}), load_settings(None, {})
    for section in module.SECTIONS:
        for (name, key, value), (_, _, default) in zip(
            module._keys(getattr(loaded, section)), module._keys(getattr(defaults, section)), strict=True
        ):
            if not key.path:
                assert value == default, f"{section}.{name}"


def test_the_example_marks_what_is_live():
    section, marked = "", set()
    for line in EXAMPLE.read_text().splitlines():
        if heading := re.match(r"(\w+):", line):
            section = heading[1]
            marked |= {f"{section}.{name}" for name, _, _ in module._keys(module.SECTIONS[section]())} if "[live]" in line else set()
        elif "[live]" in line and (key := re.match(r"  (\w+):", line)):
            marked.add(f"{section}.{key[1]}")
    assert marked == set(live_keys())


def test_an_empty_file_is_all_defaults(tmp_path):
    loaded = load(tmp_path, "")
    assert (loaded.listen.workers, loaded.holds.lease_s, loaded.log.format) == (0, 60, "json")
    assert loaded.policy.policy() == Policy()
    assert loaded.bounds() == Bounds()


def test_sections_may_be_empty(tmp_path):
    assert load(tmp_path, "redis:\npolicy:\n").redis.timeout_ms == 500


def test_values_of_a_file(tmp_path):
    loaded = load(
        tmp_path,
        "version: 1\nlisten: {workers: 2, socket_mode: 0600, max_open_exchanges: 30_000}\nholds: {entry: '0.25'}\n"
        "policy: {stores_away: {credit: '5.00'}, out_of_money_status: 429, trust_factor: 100, topup_url: 'https://pay.example/'}\n"
        "settler: {reconcile_full_at: 22:00}\nlog: {level: debug}\n",
    )
    assert (loaded.listen.worker_count, loaded.listen.socket_mode, loaded.listen.max_open_exchanges) == (2, 0o600, 30_000)
    assert loaded.bounds().entry_nanos == 250_000_000
    assert loaded.policy.policy() == Policy(
        stores_away_credit_nanos=5_000_000_000, out_of_money_status=429, trust_factor=100, topup_url="https://pay.example/"
    )
    assert loaded.settler.reconcile_full_at == "22:00"
    assert loaded.log.level == "debug"


def test_paths_start_at_the_directory_of_the_file(tmp_path):
    loaded = load(
        tmp_path,
        "catalog: {file: a/models.yaml, envoy_files: [/etc/envoy.yaml, b.yaml]}\nlisten: {tls: {cert_file: c, key_file: k, client_ca_file: /ca}}\n",
        {"EXTPROC_OUTBOX__DIR": "out", **ONE_WORKER},
    )
    assert loaded.catalog.file == tmp_path / "a/models.yaml"
    assert loaded.catalog.envoy_files == (Path("/etc/envoy.yaml"), tmp_path / "b.yaml")
    assert loaded.listen.tls == Tls(cert_file=tmp_path / "c", key_file=tmp_path / "k", client_ca_file=Path("/ca"))
    assert loaded.outbox.dir == tmp_path / "out"
    assert loaded.listen.address_of(3) == f"unix:{tmp_path}/run/gate-3.sock"
    assert loaded.file == tmp_path / "extproc.yaml"


def test_the_environment_goes_above_the_file(tmp_path):
    environ = {
        "EXTPROC_LISTEN__WORKERS": "4",
        "EXTPROC_POLICY__SHADOW": "true",
        "EXTPROC_POLICY__STORES_AWAY": '{credit: "1.5"}',
        "EXTPROC_POLICY__TRUST_FACTOR": "null",
        "EXTPROC_HOLDS__ENTRY": "0.002",
        "EXTPROC_LISTEN__SOCKET_MODE": "0666",
        "EXTPROC_SETTLER__RECONCILE_FULL_AT": "01:00",
        "EXTPROC_CATALOG__ENVOY_FILES": "[/a.yaml, /b.yaml]",
        "EXTPROC_ACCESS_LOG__FILE": "",
        "EXTPROC_CONFIG": "not a key: no double underscore",
        "PATH": "/bin",
    }
    loaded = load(tmp_path, "listen: {workers: 2}\npolicy: {trust_factor: 5}\naccess_log: {file: x}\n", environ)
    assert loaded.listen.workers == 4
    assert loaded.policy.shadow is True
    assert loaded.policy.stores_away_credit_nanos == 1_500_000_000
    assert loaded.policy.trust_factor is None
    assert loaded.holds.entry_nanos == 2_000_000
    assert loaded.listen.socket_mode == 0o666
    assert loaded.settler.reconcile_full_at == "01:00"
    assert loaded.catalog.envoy_files == (Path("/a.yaml"), Path("/b.yaml"))
    assert loaded.access_log.file is None


def test_every_fault_at_once_with_its_line(tmp_path):
    text = (
        "version: 2\n"
        "lisen: {}\n"
        "listen:\n"
        "  workers: many\n"
        "  ops_address: 9910\n"
        "  socket_mode: '0999'\n"
        "holds:\n"
        "  entry: 0.001\n"
        "  lease_s: 1\n"
        "policy: {over_balance: allow, out_of_money_status: 403, stores_away: open}\n"
        "settler:\n"
        "  reconcile_full_at: '24:00'\n"
        "  time_zone: Mars/Olympus\n"
        "log: json\n"
        "body:\n"
        "  bytes_maxx: 5\n"
    )
    environ = {"EXTPROC_REDIS__TIMEOUT_MS": "soon", "EXTPROC_REDDIS__URL": "x", "EXTPROC_REDIS__POOL": "3"}
    assert faults_of(tmp_path, text, environ) == [
        ("extproc.yaml", 1, "version: this program reads version 1"),
        ("extproc.yaml", 2, "lisen: is not known here; did you mean listen?"),
        ("extproc.yaml", 4, "listen.workers: must be a whole number, not 'many'"),
        ("extproc.yaml", 5, 'listen.ops_address: must be text, not the number 9910 (quote it: "9910")'),
        ("extproc.yaml", 6, "listen.socket_mode: '0999' is not an octal file mode such as \"0660\""),
        ("extproc.yaml", 8, 'holds.entry: must be text, not the number 0.001 (quote it: "0.001")'),
        ("extproc.yaml", 9, "holds.lease_s: 1 is not within 2 … 3600"),
        ("extproc.yaml", 10, "policy.over_balance: 'allow' is none of reject, clamp"),
        ("extproc.yaml", 10, "policy.out_of_money_status: must be 402 or 429"),
        ("extproc.yaml", 10, "policy.stores_away: 'open' is none of closed, {credit: \"5.00\"}"),
        ("extproc.yaml", 12, "settler.reconcile_full_at: '24:00' is not a time of day such as \"03:30\""),
        ("extproc.yaml", 13, "settler.time_zone: 'Mars/Olympus' is no time zone that this machine knows"),
        ("extproc.yaml", 14, "log: must be a mapping, not 'json'"),
        ("extproc.yaml", 16, "body.bytes_maxx: is not known here; did you mean bytes_max?"),
        ("EXTPROC_REDDIS__URL", 0, "there is no section reddis"),
        ("EXTPROC_REDIS__POOL", 0, "section redis has no key pool"),
        ("EXTPROC_REDIS__TIMEOUT_MS", 0, "redis.timeout_ms: must be a whole number, not 'soon'"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("holds:\n  lease_s: 8\n  beat_s: 5", 3, "two beats must fit"),
        ("holds:\n  grace_s: 1", 1, "reap_every_s: is above grace_s"),
        ("holds:\n  lease_s: 10\n  witness_grace_s: 10", 3, "must be below lease_s"),
        ("holds: {beat_s: 1}\nredis:\n  timeout_ms: 1000", 3, "must be below holds.beat_s"),
        ("body:\n  bytes_max: 10_000", 1, "offload_bytes: is above bytes_max"),
        ("policy:\n  over_balance: clamp\n  shadow: true", 3, "changes no request"),
        ("listen:\n  workers: 2\n  address: unix:one.sock", 3, "{worker}"),
        ("listen:\n  workers: 1\n  address: unix:/" + "x" * 200, 3, "107 bytes"),
        ("listen:\n  workers: 1\n  address: 0.0.0.0:5005", 3, "loopback only"),
        ("listen:\n  address: unix:@abstract-{worker}", 2, "names no socket file"),
        ("listen:\n  workers: 1\n  insecure_loopback: true\n  address: 127.0.0.1:9910", 1, "is the address of the gate"),
        ("listen:\n  workers: 1\n  address: 127.0.0.1:5005", 3, "insecure_loopback: true"),
        ("listen:\n  workers: 1\n  address: 127.0.0.1:5005\n  insecure_loopback: true\n  allowed_uids: [5]", 5, "only a Unix socket"),
        ("listen:\n  transport: grpcio\n  allowed_uids: [5]", 3, "grpcio cannot ask"),
        ("listen:\n  allowed_uids: [root]", 2, "whole number"),
        ("listen:\n  tls: {cert_file: a, key_file: b}", 2, "client_ca_file is missing"),
        ("redis:\n  url: http://x", 2, "is no redis://"),
        ("postgres:\n  dsn: mysql://x", 2, "is no postgresql://"),
        ("identity:\n  client_ip: xff:0", 2, "xff:1"),
        ("identity:\n  key_header: Authorization", 2, "lower case"),
        ("redis:\n  password: hunter2", 2, "a secret has no place in this file; set EXTPROC_REDIS__PASSWORD or redis.password_file"),
        ("redis:\n  url: redis://:hunter2@h/0", 2, "a secret has no place"),
        ("postgres:\n  dsn: postgresql://u:hunter2@h/d", 2, "a secret has no place"),
        ("postgres:\n  dsn: host=h password=hunter2", 2, "a secret has no place"),
        ("postgres:\n  password_file: gone", 2, "cannot be read: No such file"),
        ("identity:\n  cache_salt_key: x", 2, "set EXTPROC_IDENTITY__CACHE_SALT_KEY or identity.cache_salt_key_file"),
        ("a: 1\na: 2", 2, "second time"),
    ],
)
def test_each_fault_has_its_place(tmp_path, text, line, part):
    [(file, found, message)] = faults_of(tmp_path, text)
    assert (file, found) == ("extproc.yaml", line)
    assert part in message
    assert "hunter2" not in message


def test_a_faulty_override_is_named_by_its_variable(tmp_path):
    environ = {"EXTPROC_HOLDS__BEAT_S": "40"}
    assert [fault[0] for fault in faults_of(tmp_path, "", environ)] == ["EXTPROC_HOLDS__BEAT_S"]


def test_secrets_come_from_files_and_environment(tmp_path):
    (tmp_path / "pw").write_text("hunter2\n")
    loaded = load(tmp_path, "redis: {password_file: pw}", {"EXTPROC_POSTGRES__PASSWORD": "hunter3"})
    assert (loaded.redis.password, loaded.postgres.password) == ("hunter2", "hunter3")
    for text in (json.dumps(loaded.masked()), repr(loaded)):
        assert "hunter" not in text
    assert loaded.masked()["redis"]["password"] == "***"


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 5_000])
def test_a_file_without_a_secret(tmp_path, content):
    (tmp_path / "pw").write_bytes(content)
    [(_, _, message)] = faults_of(tmp_path, "redis: {password_file: pw}")
    assert "holds no secret" in message


def test_addresses_in_the_environment_may_carry_a_password_and_are_masked(tmp_path):
    environ = {"EXTPROC_REDIS__URL": "redis://u:hunter2@h:6379/0", "EXTPROC_POSTGRES__DSN": "host=h password='hunter 3' user=u"}
    loaded = load(tmp_path, "", environ)
    assert loaded.redis.url == environ["EXTPROC_REDIS__URL"]
    masked = loaded.masked()
    assert (masked["redis"]["url"], masked["postgres"]["dsn"]) == ("redis://u:***@h:6379/0", "host=h password=*** user=u")


def test_masked_reads_back_as_the_same_settings(tmp_path):
    before = load(tmp_path, "policy: {stores_away: {credit: '5.00'}}\nlisten: {socket_mode: 0600}\nholds: {entry: '0.5'}\n")
    plain = before.masked()
    for section in ("redis", "postgres"):
        del plain[section]["password"]
    del plain["identity"]["cache_salt_key"]
    assert load(tmp_path, json.dumps(plain)) == before


def test_what_needs_a_restart(tmp_path):
    before = load(tmp_path, "")
    after = load(tmp_path, "listen: {workers: 3}\npolicy: {shadow: true}\nholds: {lease_s: 50}\ncatalog: {file: other.yaml}\n")
    assert restart_needed(before, after) == ("listen.workers", "holds.lease_s")
    assert restart_needed(before, dataclasses.replace(before)) == ()


def test_a_missing_file():
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(Path("/nowhere/extproc.yaml"), {})


def test_the_reference_names_every_key_with_its_default():
    """Rows of the page: | `section.key` | `default` | …"""
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| `([^`]*)` \|", REFERENCE.read_text(), re.MULTILINE))
    expected = {
        f"{section}.{name}": json.dumps(value, ensure_ascii=False).strip('"')
        for section in module.SECTIONS
        for name, value in _as_written(module.SECTIONS[section]()).items()
    }
    assert rows == expected


def _as_written(group) -> dict:
    return {name: module._plain(key, value) for name, key, value in module._keys(group)}
