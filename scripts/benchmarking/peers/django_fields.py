"""Libraries that bring Django a model field which encrypts: django-fernet-encrypted-fields and django-pgcrypto-fields.

Rows are re-encrypted as the documentation of the first one says, by loading and saving each object; here in transactions of a
page of objects, which is kinder than a transaction for each.
"""

from __future__ import annotations

import importlib.metadata
import secrets
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import django
from django.conf import settings
from django.db import connections, models, transaction
from django.db.models.functions import Now
from sqlalchemy import URL

from benchmarking.deployment import Deployment
from benchmarking.peers.peer import FIELDS, PAGE_ROWS, as_text
from benchmarking.peers.sqlalchemy_types import SEARCH_PATH, ordered_id
from benchmarking.ways import Copied
from voiceassist_db import Patient

OLD, NEW = "default", "new"
"""Two connections to the same database: django-pgcrypto-fields keeps a key for each."""


def configure(url: URL) -> None:
    """Configure Django, once in a process."""
    connection = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or "",
        "PORT": url.port or "",
        "OPTIONS": {**url.query, "options": SEARCH_PATH},
    }
    settings.configure(
        DATABASES={alias: {**connection, "PGCRYPTO_KEY": secrets.token_urlsafe(32)} for alias in (OLD, NEW)},
        INSTALLED_APPS=[],
        SECRET_KEY=secrets.token_urlsafe(32),
        SALT_KEY=secrets.token_urlsafe(32),
        TIME_ZONE="UTC",
        USE_TZ=True,
    )
    django.setup()


class DjangoPeer(Copied, ABC):
    """One such field.

    Args:
        deployment: The database, which Django was configured for.
        rows: How many rows to re-encrypt.

    Attributes:
        saves_with: The connection to save with.
        lookup: The name of the lookup by which a medical record number is found; None where there is none.
    """

    name: str
    table: str
    note: str = ""
    saves_with = OLD
    lookup: str | None = None

    def __init__(self, deployment: Deployment, *, rows: int) -> None:
        super().__init__(deployment, self.table)
        self.version = f"{importlib.metadata.version(self.name)}, Django {django.get_version()}"
        self.rows = rows
        fields = {"plain": models.CharField(max_length=100, unique=True), "a": self.field(), "b": self.field()}
        self._model = _model(self.table, fields | {"created_at": models.DateTimeField(db_default=Now())})

    @abstractmethod
    def field(self) -> Any:
        """Make one of its fields."""

    def hash_field(self) -> Any | None:
        """Make the field that a medical record number is found by, where there is one."""
        return None

    def use_keys(self, *, old: bool, new: bool) -> None:
        """Let values be read under the old key, the new one, or both, and written under the newest."""

    def create(self) -> None:
        """Create the table by the library's own fields, and fill it through them."""
        self.use_keys(old=True, new=False)
        with connections[OLD].schema_editor() as editor:
            editor.create_model(self._model)
        made = [self._model(id=ordered_id(n), plain=str(n), a=f"123-45-{n}", b=f"MRN-{n}") for n in range(self.rows)]
        self._model.objects.bulk_create(made, batch_size=PAGE_ROWS)
        connections.close_all()
        self.keep()

    def run(self) -> float:
        """Load a page of objects under the old key, save each under the new key, commit; and so on."""
        self.use_keys(old=True, new=True)
        started = time.perf_counter()
        using, after = self.saves_with, uuid.UUID(int=0)
        while page := list(self._model.objects.filter(id__gt=after).order_by("id")[:PAGE_ROWS]):
            with transaction.atomic(using=using):
                for each in page:
                    each.save(using=using)
            after = page[-1].id
        seconds = time.perf_counter() - started
        connections.close_all()
        return seconds

    def prove(self) -> None:
        """Load all values under the new key."""
        self.use_keys(old=False, new=True)
        rows = list(self._model.objects.using(self.saves_with).values_list("plain", "a", "b"))
        connections.close_all()
        assert len(rows) == self.rows
        assert all((f"123-45-{plain}", f"MRN-{plain}") == (a, b) for plain, a, b in rows)

    def store(self) -> DjangoStore:
        """Create its table of patients."""
        fields: dict[str, Any] = {"patient_id": models.CharField(max_length=100, unique=True)}
        fields |= {name: self.field() for name in FIELDS}
        if self.lookup is not None:
            fields["mrn_hash"] = self.hash_field()
        model = _model(f"{self.table}_patients", fields)
        with connections[OLD].schema_editor() as editor:
            editor.create_model(model)
        return DjangoStore(self.name, model, self.lookup)


class FernetFields(DjangoPeer):
    """django-fernet-encrypted-fields: keys are derived from ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS``."""

    name = "django-fernet-encrypted-fields"
    table = "django_fernet"

    def __init__(self, deployment: Deployment, *, rows: int) -> None:
        super().__init__(deployment, rows=rows)
        self._old, self._new = (secrets.token_urlsafe(32) for _ in range(2))

    def field(self) -> Any:
        """Make a text field."""
        from encrypted_fields.fields import EncryptedTextField

        return EncryptedTextField()

    def use_keys(self, *, old: bool, new: bool) -> None:
        """Change the settings, let the fields forget what they derived, as at a restart, and derive it at once."""
        first, *others = [key for key, is_used in ((self._new, new), (self._old, old)) if is_used]
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = first, others
        for name in ("a", "b"):
            field = self._model._meta.get_field(name)
            for derived in ("keys", "f"):
                field.__dict__.pop(derived, None)
            assert field.f is not None


class PgcryptoFields(DjangoPeer):
    """django-pgcrypto-fields: a key for each connection."""

    name = "django-pgcrypto-fields"
    table = "django_pgcrypto"
    note = (
        "pgcrypto's default options, which cannot be changed, stretch each key; the lookup casts the column, so that no index "
        "of it applies, and the key of its hash is the text {} for everyone"
    )
    saves_with = NEW
    lookup = "hash_of"

    def field(self) -> Any:
        """Make a text field with a symmetric key."""
        from pgcrypto.fields import TextPGPSymmetricKeyField

        return TextPGPSymmetricKeyField()

    def hash_field(self) -> Any:
        """Make a field with the keyed hash of another one."""
        from pgcrypto.fields import TextHMACField

        return TextHMACField(original="mrn", db_index=True)


def _model(table: str, fields: dict[str, Any]) -> type[Any]:
    meta = type("Meta", (), {"app_label": "benchmark", "db_table": table})
    key = models.UUIDField(primary_key=True)
    return type(table, (models.Model,), {"__module__": __name__, "Meta": meta, "id": key, **fields})


class DjangoStore:
    """Patients in Django's ORM, by one statement for each call."""

    def __init__(self, name: str, model: type[Any], lookup: str | None) -> None:
        self.name = name
        self.can_find = lookup is not None
        self._model = model
        self._lookup = lookup
        self._atomic = transaction.atomic()

    def begin(self) -> None:
        """Begin a transaction."""
        self._atomic = transaction.atomic()
        self._atomic.__enter__()
        connections[OLD].cursor().execute("SELECT 1")

    def rollback(self) -> None:
        """Undo it."""
        transaction.set_rollback(True)
        self.commit()

    def commit(self) -> None:
        """Keep it."""
        self._atomic.__exit__(None, None, None)

    def add(self, patient: Patient) -> None:
        """Create an object."""
        self._model.objects.create(id=uuid.uuid4(), **as_text(patient))

    def get(self, patient: Patient) -> None:
        """Get an object by ``patient_id``."""
        self._model.objects.get(patient_id=patient.patient_id)

    def find(self, patient: Patient) -> None:
        """Get an object by the library's own lookup."""
        self._model.objects.get(**{f"mrn_hash__{self._lookup}": patient.mrn})

    def update(self, patient: Patient) -> None:
        """Update without a SELECT before."""
        values = as_text(patient)
        found = self._model.objects.filter(patient_id=patient.patient_id)
        found.update(name=values["name"], address=values["address"])

    def add_many(self, patients: Sequence[Patient]) -> None:
        """Insert in bulk."""
        made = [self._model(id=uuid.uuid4(), **as_text(each)) for each in patients]
        self._model.objects.bulk_create(made, batch_size=PAGE_ROWS)

    def page(self) -> int:
        """Get objects in the order of the primary key."""
        return len(self._model.objects.order_by("id")[:PAGE_ROWS])

    def close(self) -> None:
        """Close the connections."""
        connections.close_all()
