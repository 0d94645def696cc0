"""A certificate authority of our own, and a certificate for localhost that it signed: for one machine, never for the Internet."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 825
"""The most that strict clients accept of a server certificate."""

RENEW_DAYS = 30
"""With less than this left, both are made anew."""

NAMES = ("localhost", "*.localhost")
ADDRESSES = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files, PEM. ``ca_file`` is what a client must trust."""

    ca_file: Path
    ca_key_file: Path
    cert_file: Path
    key_file: Path


def ensure(directory: Path) -> Certificates:
    """What is there, or all of it anew when something is missing or will expire soon. Key files have mode 0600."""
    found = Certificates(
        ca_file=directory / "ca.pem",
        ca_key_file=directory / "ca.key",
        cert_file=directory / "server.pem",
        key_file=directory / "server.key",
    )
    if not _good(found):
        directory.mkdir(parents=True, exist_ok=True)
        _make(found)
    return found


def _good(files: Certificates) -> bool:
    paths = (files.ca_file, files.ca_key_file, files.cert_file, files.key_file)
    if not all(path.exists() for path in paths):
        return False
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=RENEW_DAYS)
    certificates = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.ca_file, files.cert_file)]
    ca, server = certificates
    return all(certificate.not_valid_after_utc > soon for certificate in certificates) and server.issuer == ca.subject


def _make(files: Certificates) -> None:
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # The serial makes the name unique, so that a browser never mistakes one of our authorities for another.
    ca_name = _name(f"extproc local authority {x509.random_serial_number() & 0xFFFFFFFF:08x}")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    ca_identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(ca_identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    server = (
        _builder(_name("localhost"), ca_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, NAMES), *addresses]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(files.ca_key_file, _pem_of_key(ca_key), mode=0o600)
    _write(files.key_file, _pem_of_key(key), mode=0o600)
    _write(files.cert_file, server.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _write(files.ca_file, ca.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    unfinished.rename(path)
