"""TLS material of one process: a folder with ca.crt, tls.crt and tls.key, read again whenever the files change.

    server.add_secure_port(address, TlsFolder(Path("certs/policy")).server_credentials(require_certificate=True))

A server's handshakes and a client's next connection use what the files hold then, so certificates rotate without a
restart. New files that cannot be used (half written, expired, of another authority) are logged once and the old ones
stay in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from lodestar import metrics
from lodestar.errors import ConfigError
from lodestar.rpc.certificates import AUTHORITY, CERTIFICATE, KEY, check_pair
from lodestar.rpc.renewal import Renewed


@dataclass(frozen=True, slots=True)
class Material:
    """What the files hold, in PEM."""

    authority: bytes
    """Certificates of the authorities that the other side may be signed by; two while one replaces the other."""
    certificate: bytes | None
    """Our own chain; None for a client that shows a token instead."""
    key: bytes | None


class TlsFolder:
    """The folder's present material. Safe to use from any thread: gRPC asks from its own."""

    def __init__(self, folder: Path | str) -> None:
        """
        Raises:
            ConfigError: the files are missing, or cannot be used now.
        """
        self._folder = Path(folder)
        files = [self._folder / name for name in (AUTHORITY, CERTIFICATE, KEY)]
        self._material = Renewed("TLS files", files, self._read)
        self._configuration: tuple[Material, grpc.ServerCertificateConfiguration] | None = None

    def material(self) -> Material:
        """The newest usable material."""
        return self._material.present()

    def server_credentials(self, *, require_certificate: bool) -> grpc.ServerCredentials:
        """For a port whose callers must show a certificate, or for one where they do not (and show a token).

        Raises:
            ConfigError: the folder has no certificate of its own.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(), self._server_configuration, require_certificate
        )

    def channel_credentials(self, material: Material, token: str | None = None) -> grpc.ChannelCredentials:
        """For a channel; with a token, every call carries it."""
        tls = grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)
        if token is None:
            return tls
        return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        material = self.material()
        if self._configuration is None or self._configuration[0] is not material:
            if material.certificate is None or material.key is None:
                raise ConfigError(str(self._folder), f"a server needs {CERTIFICATE} and {KEY} there")
            pairs = [(material.key, material.certificate)]
            self._configuration = material, grpc.ssl_server_certificate_configuration(pairs, material.authority)
        return self._configuration[1]

    def _read(self) -> Material:
        certificate, key = (self._folder / name for name in (CERTIFICATE, KEY))
        if certificate.exists() != key.exists():
            missing, other = (key, certificate) if certificate.exists() else (certificate, key)
            raise ConfigError(str(missing), f"is missing, and {other.name} is there")
        try:
            material = Material(
                (self._folder / AUTHORITY).read_bytes(),
                certificate.read_bytes() if certificate.exists() else None,
                key.read_bytes() if key.exists() else None,
            )
        except OSError as error:
            raise ConfigError(
                str(self._folder),
                f"cannot be read as TLS material: {error.strerror}: {error.filename}; it holds {AUTHORITY} and, for a "
                f"certificate of one's own, {CERTIFICATE} and {KEY}",
            ) from None
        if material.certificate is not None and material.key is not None:
            expires = check_pair(material.certificate, material.key, material.authority, str(self._folder))
            metrics.CERTIFICATE_EXPIRES.set(expires)
        return material
