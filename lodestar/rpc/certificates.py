"""Certificates: what makes one usable, and a small authority of one's own for development.

The name that decides what a certificate's owner may do is a URI among its alternative names,
``spiffe://lodestar/ROLE/NAME`` (lodestar.rpc.access); host names and addresses among them say where it may serve.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lodestar.errors import ConfigError
from lodestar.files import write_atomically

AUTHORITY, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
"""File names, those of cert-manager's secrets."""
AUTHORITY_KEY = "ca.key"
AUTHORITY_DAYS = 3650
TRUST_DOMAIN = "lodestar"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLOCK_SKEW = datetime.timedelta(minutes=5)


def role_uri(role: str, name: str) -> str:
    """``role_uri("worker", "policy")`` → ``spiffe://lodestar/worker/policy``."""
    return f"spiffe://{TRUST_DOMAIN}/{role}/{name}"


def check_pair(certificate: bytes, key: bytes, authority: bytes, place: str) -> float:
    """Checks that a PEM chain can be used now with the key and the authority; the Unix time of its expiry.

    Raises:
        ConfigError: it cannot, with what is wrong and the files of ``place`` to look at.
    """
    chain = _certificates(certificate, f"{place}/{CERTIFICATE}")
    trusted = _certificates(authority, f"{place}/{AUTHORITY}")
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}/{KEY}", f"is no private key in PEM without a password: {error}") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if chain[0].public_key().public_bytes(*form) != public.public_bytes(*form):
        raise ConfigError(f"{place}/{KEY}", f"is not the key of {CERTIFICATE} beside it")
    now = datetime.datetime.now(datetime.UTC)
    if chain[0].not_valid_after_utc < now:
        raise ConfigError(f"{place}/{CERTIFICATE}", f"expired at {chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if chain[0].not_valid_before_utc > now:
        raise ConfigError(f"{place}/{CERTIFICATE}", f"is valid from {chain[0].not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    for lower, upper in pairwise(chain):
        if not _issued(lower, [upper]):
            raise ConfigError(f"{place}/{CERTIFICATE}", "is no chain: each certificate must be signed by the next one")
    if not _issued(chain[-1], trusted):
        raise ConfigError(f"{place}/{CERTIFICATE}", f"is not signed by the authority in {AUTHORITY} beside it")
    return chain[0].not_valid_after_utc.timestamp()


def _certificates(pem: bytes, place: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(place, f"holds no certificate in PEM: {error}") from None


def _issued(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return True
    return False


@dataclass(frozen=True, slots=True)
class Authority:
    """A signing key and its certificate: ``Authority.create().issue(Path("certs/policy"), "worker", "policy")``."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str = "lodestar development authority", days: float = AUTHORITY_DAYS) -> Self:
        """A new, self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates only
        certificate = (
            _dated(x509.CertificateBuilder().subject_name(subject).issuer_name(subject), days)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """The authority in ``folder``, made on first use.

        Raises:
            ConfigError: the files there are no authority.
        """
        key_file, certificate_file = folder / AUTHORITY_KEY, folder / AUTHORITY
        if not key_file.exists():
            made = cls.create()
            write_atomically(key_file, _private(made.key), secret=True)
            write_atomically(certificate_file, made.pem)
            return made
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(key_file), f"is no private key in PEM: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(str(key_file), "is of another kind than this command makes; choose an empty folder")
        return cls(key, _certificates(certificate_file.read_bytes(), str(certificate_file))[0])

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, folder: Path, role: str, name: str, *, hosts: Sequence[str] = LOOPBACK, days: float = 30.0) -> None:
        """Writes ca.crt, tls.crt and tls.key of a new certificate to ``folder``; each file is replaced whole.

        Negative ``days`` give one that expired so long ago. An empty role leaves the URI out.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [_host(host) for host in hosts]
        if role:
            names.append(x509.UniformResourceIdentifier(role_uri(role, name)))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        start = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(self.certificate.subject)
        certificate = (
            _dated(start, days)
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        # The key first: a reader that sees it with the older certificate keeps what it has.
        write_atomically(folder / KEY, _private(key), secret=True)
        write_atomically(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
        write_atomically(folder / AUTHORITY, self.pem)


def _dated(builder: x509.CertificateBuilder, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=days)
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - _CLOCK_SKEW)
        .not_valid_after(until)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
