"""TLS of the clients' ports. Rule: a certificate that cannot be used changes nothing.

Contexts are made from the files as a whole and swapped in one step, so a reload never mixes an old
key with a new certificate; connections that run keep theirs. TLS 1.2 at least, and of its ciphers
those that HTTP/2 allows (RFC 9113 9.2.2). ALPN: h2 on the gRPC port, http/1.1 on the HTTP port.
"""

import ssl
from collections.abc import Callable

import grpc

from tritonsched.errors import StartupError
from tritonsched.options import TlsFiles

H2, HTTP1 = "h2", "http/1.1"
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all allowed


class Tls:
    """The identity of the ports. Raises StartupError if the files cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._contexts = self._read()

    def context(self, alpn: str) -> Callable[[], ssl.SSLContext]:
        """What tells the context of the moment, for one of H2 and HTTP1."""
        return lambda: self._contexts[alpn]

    def reload(self) -> None:
        """Read the files again. Raises StartupError, and keeps the old ones."""
        self._contexts = self._read()

    def _read(self) -> dict[str, ssl.SSLContext]:
        return {alpn: _context(self._files, alpn) for alpn in (H2, HTTP1)}

    def grpcio(self) -> grpc.ServerCredentials:
        """The same for gRPC's own library, which asks for the files at each connection."""
        config = _grpcio_config(self._files)

        def fetch() -> grpc.ServerCertificateConfiguration:
            return _grpcio_config(self._files)

        return grpc.dynamic_ssl_server_credentials(
            config, fetch, require_client_authentication=self._files.client_ca is not None
        )


def _context(files: TlsFiles, alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols([alpn])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unusable(f"--tls-cert {files.certificate}, --tls-key {files.key}", error) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise _unusable(f"--tls-client-ca {files.client_ca}", error) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _unusable(what: str, error: Exception) -> StartupError:
    text = getattr(error, "strerror", None) or str(error)
    return StartupError(f"{what}: {text}; PEM files that belong together are needed")


def _no_password() -> str:
    """Nobody is there to be asked for one."""
    raise ValueError("the key is encrypted")


def _grpcio_config(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    root = None if files.client_ca is None else files.client_ca.read_bytes()
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=root)
