"""The certificate that a TLS listener shows: read at start, read again when told to, refused in one sentence."""

import logging
import ssl
import stat
from pathlib import Path
from typing import NoReturn

from sandboxd.errors import StartupError

log = logging.getLogger(__name__)

# In the order of preference. HTTP/2 is for those who ask for it: without ALPN a client gets HTTP/1.1 (RFC 9113 §3.2).
PROTOCOLS = ["h2", "http/1.1"]

# TLS 1.2 with forward secrecy and authenticated encryption only; what is left out HTTP/2 forbids (RFC 9113 appendix
# A). TLS 1.3 has its own list, all of which is good.
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class ServerTls:
    """A certificate with its chain, and the key to it, from two PEM files that may be one and the same.

    `context` is for connections to come; `reload` replaces it, and those that are open go on with the old one.
    Raises: `StartupError`, which names the file and what to do, when made and when reloaded.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context = self._load()

    def __str__(self) -> str:
        return str(self._certificate)

    def reload(self) -> None:
        """Read both files again. The present certificate stays in use if they cannot be used."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        self._read(self._certificate, "certificate")
        self._read(self._key, "key")
        self._warn_of_readers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_ciphers(TLS12_CIPHERS)
        context.set_alpn_protocols(PROTOCOLS)
        try:
            context.load_cert_chain(self._certificate, self._key, password=self._refuse_password)
        except ssl.SSLError as error:
            self._explain(error)
        return context

    def _read(self, path: Path, what: str) -> None:
        """OpenSSL would not say which of the two it could not open."""
        try:
            path.read_bytes()
        except FileNotFoundError:
            raise _unusable(what, path, f"there is no such file; set `tls.{what}` of this listener to one") from None
        except OSError as error:
            raise _unusable(
                what, path, f"{error.strerror or error}; the daemon's user must be able to read it"
            ) from error

    def _warn_of_readers(self) -> None:
        if self._key.stat().st_mode & stat.S_IROTH:
            log.warning("everyone on this host can read the key %s: chmod o-r %s", self._key, self._key)

    def _refuse_password(self) -> NoReturn:
        raise _unusable(
            "key", self._key, "a passphrase protects it; take it off with: openssl pkey -in KEY -out NEW-KEY"
        )

    def _explain(self, error: ssl.SSLError) -> NoReturn:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(
                "key",
                self._key,
                f"it is not the one to the certificate {self._certificate}; give the pair made together",
            ) from error
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self._certificate)
        except ssl.SSLError:
            raise _unusable(
                "certificate", self._certificate, "it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
            ) from error
        if error.reason in {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}:
            raise _unusable(
                "certificate", self._certificate, "its key or signature is too weak (RSA takes 2048 bits or more)"
            ) from error
        raise _unusable(
            "key", self._key, "it holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)"
        ) from error


def _unusable(what: str, path: Path, why: str) -> StartupError:
    return StartupError(f"cannot use the TLS {what} {path}: {why}", kind="bad_certificate", path=str(path))
