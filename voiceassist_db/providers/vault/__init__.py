"""Keys in Vault or OpenBao: one secret of a KV v2 engine. ``client`` is the only importer of hvac."""

from voiceassist_db.providers.vault.logins import AppRoleLogin, KubernetesLogin, TokenLogin
from voiceassist_db.providers.vault.provider import VaultKeyProvider

__all__ = ["AppRoleLogin", "KubernetesLogin", "TokenLogin", "VaultKeyProvider"]
