"""Keys in Vault or OpenBao: one secret of a KV v2 engine. ``transport`` is the only importer of hvac."""

from voiceassist_db.providers.vault.logins import (
    AgentLogin,
    AppRoleLogin,
    CertificateLogin,
    JwtLogin,
    KubernetesLogin,
    TokenFileLogin,
    TokenLogin,
)
from voiceassist_db.providers.vault.provider import VaultKeyProvider
from voiceassist_db.providers.vault.transport import ClientCertificate

__all__ = [
    "AgentLogin",
    "AppRoleLogin",
    "CertificateLogin",
    "ClientCertificate",
    "JwtLogin",
    "KubernetesLogin",
    "TokenFileLogin",
    "TokenLogin",
    "VaultKeyProvider",
]
