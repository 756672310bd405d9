"""The life of the token: when to log in, again, and when to renew.

Owns the only copy of a token that outlives a request. There is no thread behind it: time passes unseen between two
fetches, so a token should live at least three times as long as the keyring's time to live.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from voiceassist_db.errors import KeyStoreAuthenticationError, KeyStoreError, KeyStoreForbiddenError
from voiceassist_db.forks import ProcessLock
from voiceassist_db.masking import Masked, Opaque
from voiceassist_db.providers.vault.client import Lease, VaultClient
from voiceassist_db.providers.vault.logins import AgentLogin, GivenLogin, MethodLogin

logger = logging.getLogger(__name__)

LOG_IN_AGAIN: Final = 1 / 3
"""Part of the lease that is left when a new token is asked for."""

RENEW: Final = 1 / 2
"""Part of its first time that is left when a given token is renewed."""

RELOGIN_AFTER_S: Final = 10.0
"""How long a new token that was refused is kept: another login would get the same policies."""


class GivenToken(Opaque):
    """A token that came from outside: it cannot be replaced here, only renewed, or read again where a file holds it."""

    def __init__(self, client: VaultClient, login: GivenLogin) -> None:
        self._client = client
        self._login = login
        self._lock = ProcessLock()
        self._token = Masked("")
        # An agent renews the token that it adds.
        self._due = math.inf if isinstance(login, AgentLogin) else 0.0

    def current(self) -> Masked:
        """Return the token, as it is now. Raises KeyStoreAuthenticationError where its file cannot be read."""
        token = self._login.read()
        with self._lock:
            if token.value != self._token.value:
                self._token, self._due = token, 0.0
        return token

    def accepted(self) -> None:
        """Do nothing: no login follows from it."""

    def after_refusal(self, refused: Masked, refusal: KeyStoreForbiddenError) -> Masked:
        """Return the token of a file that was replaced since; else say why the token was refused.

        Raises:
            KeyStoreAuthenticationError: The token is not accepted.
            KeyStoreForbiddenError: The refusal itself: the token is good, but it may not do this.
        """
        now = self.current()
        if now.value != refused.value:
            return now
        self._client.look_up(refused)
        raise refusal

    def keep_alive(self) -> None:
        """Renew the token if less than half of its time is left. A failure is a warning: so far the token works."""
        with self._lock:
            if time.monotonic() < self._due:
                return
            try:
                self._renew()
            except KeyStoreAuthenticationError as error:
                self._due = math.inf  # it may not look itself up, ever
                logger.warning("the Vault token cannot be renewed and may expire: %s", error)
            except KeyStoreError as error:
                logger.warning("the Vault token could not be renewed, which is tried again: %s", error)

    def _renew(self) -> None:
        now = time.monotonic()
        lease = self._client.look_up(self._token)
        half_s = lease.granted_s * RENEW
        if not lease.renewable or not lease.granted_s:
            self._due = math.inf
            return
        left_s = lease.left_s
        if left_s < half_s:
            left_s = self._client.renew(self._token).left_s
            logger.debug("renewed the Vault token for %.0f s", left_s)
            if left_s < half_s:
                logger.warning("the Vault token reaches its longest life and expires in %.0f s: set a new one", left_s)
        self._due = now + left_s - half_s


class LoginToken(Opaque):
    """A token from a login, which is replaced by another login."""

    def __init__(self, client: VaultClient, login: MethodLogin) -> None:
        self._client = client
        self._login = login
        self._lock = ProcessLock()
        self._lease: Lease | None = None
        self._granted_at = 0.0
        self._due = 0.0
        self._expiry = 0.0
        self._was_accepted = False

    def current(self) -> Masked:
        """Return a token with at least a third of its time left, or one that lives while no new one is to be had."""
        with self._lock:
            if self._lease is None or time.monotonic() >= self._expiry:
                return self._log_in()
            if time.monotonic() < self._due:
                return self._lease.token
            try:
                return self._log_in()
            except KeyStoreAuthenticationError as error:
                left_s = self._expiry - time.monotonic()
                logger.warning("no new Vault token, and the old one expires in %.0f s: %s", left_s, error)
            return self._lease.token

    def accepted(self) -> None:
        """Record that the token is permitted what it is for."""
        self._was_accepted = True

    def after_refusal(self, refused: Masked, refusal: KeyStoreForbiddenError) -> Masked:
        """Log in again, unless another thread did: the token may have been revoked.

        Raises:
            KeyStoreForbiddenError: The refusal itself: the login is new, and its token was never accepted.
        """
        with self._lock:
            if self._lease is not None and self._lease.token is not refused:
                return self._lease.token
            if not self._was_accepted and time.monotonic() < self._granted_at + RELOGIN_AFTER_S:
                raise refusal
            return self._log_in()

    def keep_alive(self) -> None:
        """Do nothing: the next :meth:`current` logs in again in time."""

    def _log_in(self) -> Masked:
        now = time.monotonic()
        lease = self._client.log_in(self._login)
        self._lease, self._was_accepted, self._granted_at = lease, False, now
        self._expiry = now + (lease.granted_s or math.inf)
        self._due = self._expiry - lease.granted_s * LOG_IN_AGAIN
        return lease.token
