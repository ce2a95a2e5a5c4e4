"""The aggregator's own certificate: made at each start, kept in memory only, renewed long before it ends."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.members import pki
from cairn.rpc import Identity, ServerTls

LOOPBACK = ("localhost", "127.0.0.1", "::1")
RENEW_BEFORE = timedelta(days=60)


class ServerCertificate:
    """Gives the certificate to show now; hand it to `cairn.rpc.server_credentials`."""

    def __init__(self, authority: pki.Authority, hosts: Sequence[str], now: Callable[[], datetime]) -> None:
        self._authority = authority
        self._hosts = tuple(dict.fromkeys((*hosts, *LOOPBACK)))
        self._now = now
        self._lock = threading.Lock()
        self._tls, self._not_after = self._make()

    def __call__(self) -> ServerTls:
        """Return the same object as before until a new certificate was due."""
        with self._lock:
            ends = self._authority.certificate.not_valid_after_utc  # a new one would not outlive the CA either
            if self._now() + RENEW_BEFORE > self._not_after and self._not_after < ends:
                self._tls, self._not_after = self._make()
            return self._tls

    def _make(self) -> tuple[ServerTls, datetime]:
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(self._authority.federation, "aggregator", "aggregator")
        certificate = pki.issue(self._authority, identity, key.public_key(), self._now(), hosts=self._hosts)
        chain = pki.chain_pem(certificate, self._authority)
        return ServerTls(self._authority.certificate_pem, chain, pki.private_pem(key)), certificate.not_valid_after_utc
