"""The documentation is held to the program: commands, options, code and error texts that it shows exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for room in ("acq_isl", "engines", "hooks", "sim")
    for path in sorted((ROOT / room).rglob("*.py"))
)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def _shown_commands() -> set[str]:
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        spans = re.findall(r"`(acq-isl [^`]+)`", text)
        lines = [line for block in _blocks(page, "") for line in block.splitlines()]
        for line in [*spans, *lines, *re.findall(r"^    (acq-isl .*)$", text, re.MULTILINE)]:
            shown |= {
                part.strip() for part in re.split(r"&&|;|  +", line) if part.strip().startswith("acq-isl ")
            }
    return shown


@pytest.mark.parametrize("line", sorted(_shown_commands()))
def test_a_command_that_is_shown_exists_with_its_options(line: str) -> None:
    from acq_isl.cli.app import cli

    commands = typer.main.get_command(cli).commands  # type: ignore[attr-defined]
    words = shlex.split(re.sub(r"[\[\]|]", " ", line.partition("#")[0]), comments=False)[1:]
    if words[0].startswith("-") or words[0] == "COMMAND":
        return
    assert words[0] in commands, line
    options = {
        name
        for parameter in commands[words[0]].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"--help"}
    assert given <= options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_compiles_and_its_imports_resolve(page: Path) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            match node:
                case ast.Import(names=names):
                    modules = {name.name: () for name in names}
                case ast.ImportFrom(module=str(module), names=names):
                    modules = {module: tuple(name.name for name in names)}
                case _:
                    continue
            for module, attributes in modules.items():
                if module.split(".")[0] == "acq_isl":
                    there = importlib.import_module(module)
                    assert all(hasattr(there, attribute) for attribute in attributes), module


def test_error_texts_that_are_explained_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(texts) >= 15
    joined = re.sub(r'"\s*\n\s*f?"', "", SOURCES)  # texts that are broken over lines
    assert [text for text in texts if text not in joined] == []


def test_every_guard_of_the_security_page_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| asset")]
    for row in rows:
        path = ""
        named = re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)`", row)
        assert named, row
        for given, name in named:
            path = given or path
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)
