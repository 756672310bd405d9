"""The API reference is what the docstrings say, and the docstrings say what a caller needs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from api_reference import PAGE, PUBLIC, doc_of, is_made_by_its_user, is_property, members_of, names_of, page

SAYS_WHAT_COMES: re.Pattern[str] = re.compile(r"(Return|Say|Give|Create|Make|Yield|Run|Let|Declare)\b")
"""First words of a docstring whose first sentence names the result."""


def public() -> Iterator[tuple[str, Any, str]]:
    """Yield each public function and method of the package, its name, and the docstring that has its arguments."""
    for place in PUBLIC:
        module = importlib.import_module(place)
        for name in names_of(module):
            value = getattr(module, name)
            if not value.__module__.startswith("voiceassist_db") or place.endswith(".errors"):
                continue
            if not inspect.isclass(value):
                yield f"{place}.{name}", value, value.__doc__ or ""
                continue
            if is_made_by_its_user(value):
                yield f"{place}.{name}", value.__init__, doc_of(value)
            for method, member in members_of(value):
                if not is_property(member):
                    function = getattr(member, "__func__", member)
                    yield f"{place}.{name}.{method}", function, function.__doc__ or ""


FUNCTIONS = [pytest.param(*each[1:], id=each[0].removeprefix("voiceassist_db.")) for each in public()]


def section(doc: str, name: str) -> str:
    """Return a section of a docstring."""
    found = re.search(rf"^{name}:\n((?: +.*\n?|\n)+)", inspect.cleandoc(doc) + "\n", re.MULTILINE)
    return found[1] if found else ""


def raised_by(function: Any) -> set[str]:
    """Return the names of errors that a function raises in its own body."""
    if inspect.unwrap(function).__code__.co_filename.startswith("<"):  # made by dataclass
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    calls = [each.exc for each in ast.walk(tree) if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)]
    return {each.func.id for each in calls if isinstance(each.func, ast.Name) and each.func.id.endswith("Error")}


def test_the_page_is_what_the_script_writes() -> None:
    """Run .ci/api_reference.py after a change of a public name or its docstring."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_public_name_is_there() -> None:
    """With a heading of its own."""
    written = re.findall(r"^### (\S+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    import voiceassist_db

    assert {*voiceassist_db.__all__} - {*written} <= {"VoiceAssistDBError"}
    assert len(written) > 60


@pytest.mark.parametrize(("function", "doc"), FUNCTIONS)
def test_a_docstring_says_what_a_caller_needs(function: Any, doc: str) -> None:
    """Each argument, what comes back, and each error that the function itself raises."""
    signature = inspect.signature(function)
    arguments = [name for name in signature.parameters if name not in {"self", "cls", "operations"}]
    told = section(doc, "Args") + section(doc, "Attributes")
    assert [name for name in arguments if not re.search(rf"\b{name}\b.*:", told)] == []
    if signature.return_annotation not in {"None", "Self", inspect.Signature.empty} and function.__name__ != "__init__":
        first = inspect.cleandoc(doc).splitlines()[0]
        assert section(doc, "Returns") or SAYS_WHAT_COMES.match(first), first
    assert [name for name in raised_by(function) if name not in section(doc, "Raises")] == []
