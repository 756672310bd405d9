"""Made-up patients for the demo, in the CSV format that ``import`` reads. No real person."""

from __future__ import annotations

import csv
import io
import json
from typing import Final

_FIRST: Final = ("José", "Zoë", "Søren", "Amélie", "Łukasz", "Chloé", "Nguyễn", "Mary Ann", "Björn", "Renée")
_LAST: Final = (
    "Núñez",
    "O'Connor",
    "Müller",
    "Dvořák",
    "Smith",
    "García",
    "Ångström",
    "van der Berg",
    "Lefèvre",
    "Kowalski",
)
_CITIES: Final = (("Chicopee", "MA", "01013"), ("Española", "NM", "87532"), ("Cañon City", "CO", "81212"))


def sample_csv(patients: int) -> io.BytesIO:
    """Return a CSV file of that many patients; the first is PT-001, and PT-007 has the same SSN."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["patient_id", "ssn", "mrn", "name", "date_of_birth", "address"])
    for number in range(1, patients + 1):
        # 900 to 999 is never given to a person as a social security number's first group.
        shown = 1 if number == 7 else number
        ssn = f"9{shown % 100:02d}-{shown // 100 % 100:02d}-{shown // 10000 % 10000:04d}"
        city, state, postcode = _CITIES[number % len(_CITIES)]
        address = {"street": f"{number} Main Street", "city": city, "state": state, "zip": postcode}
        writer.writerow(
            [
                f"PT-{number:03d}",
                ssn,
                f"MRN-{10000 + number}",
                f"{_FIRST[number % len(_FIRST)]} {_LAST[number // len(_FIRST) % len(_LAST)]}",
                f"{1930 + number % 90}-{1 + number % 12:02d}-{1 + number % 28:02d}",
                json.dumps(address, ensure_ascii=False),
            ]
        )
    return io.BytesIO(text.getvalue().encode())
