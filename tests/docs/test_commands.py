"""Every command of ours that a page names is one: its name, its options, and in code blocks its arguments too."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_lines import command_of, ours, problem, unknown_options
from tests.cxls.programs import environment
from tests.support import REPOSITORY

PAGES = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("docs/decisions/*.md")])
_TYPED = re.compile(r"(?:sudo (?:-u \S+ )?|ssh (?:-\S+ )*\S+ |for .*)?(?:env )?(?:[A-Z_]+=\S+ )*(?:\S+/)?cxls ")
_INLINE = re.compile(r"(?<!`)`([^`\n]*(?:\n[^`\n]+)?)`(?!`)")
_ELLIPSIS = ("…", "...")


@dataclass(frozen=True)
class Said:
    """A shell line of a page: where it stands, and whether it stands in a code block, where it is to be run."""

    page: str
    number: int
    line: str
    block: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


def without_tables(text: str) -> str:
    """The text without what benchmarks put into it; lines stay where they are."""
    return re.sub(r"<!-- bench .*?<!-- /bench -->", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)


def said(page: Path) -> list[Said]:
    found: list[Said] = []
    name = str(page.relative_to(REPOSITORY))
    lines = without_tables(page.read_text()).splitlines()
    fenced, prose = False, list(lines)
    number = 0
    while number < len(lines):
        line, first = lines[number], number
        if line.lstrip().startswith("```"):
            fenced = not fenced
            prose[number] = ""
        elif fenced or (line.startswith("    ") and line.strip()):
            while line.endswith("\\") and number + 1 < len(lines):
                number += 1
                line = line[:-1] + " " + lines[number].strip()
                prose[number] = ""
            prose[first] = ""
            if is_command(line):
                found.append(Said(name, first + 1, line.strip().removeprefix("$ "), True))
        number += 1
    text = "\n".join(prose)
    for match in _INLINE.finditer(text):
        inline = " ".join(match[1].split())
        if inline.startswith("cxls "):
            found.append(Said(name, text.count("\n", 0, match.start()) + 1, inline, False))
    return found


def is_command(line: str) -> bool:
    """Whether a line of a code block is typed rather than shown: what programs print has columns, or lines drawn."""
    code = re.split(r"\s#\s", line.strip(), maxsplit=1)[0].removeprefix("$ ")
    shown = "─" in code or re.search(r"\S {2,}\S", code.replace("cxls analyze   tcp", "cxls analyze tcp"))
    return bool(_TYPED.match(code)) and not shown


LINES = [each for page in PAGES for each in said(page)]


def calls(each: Said) -> list[list[str]]:
    return ours(re.split(r"\s#\s", each.line, maxsplit=1)[0])


def test_pages_name_many_commands() -> None:
    assert len([each for each in LINES if each.block]) > 50
    assert len([each for each in LINES if not each.block]) > 50


@pytest.mark.parametrize("each", [each for each in LINES if each.block], ids=str)
def test_a_command_in_a_code_block_is_taken_by_the_program(each: Said) -> None:
    found = calls(each)
    assert found, each.line
    for words in found:
        if any(mark in word for word in words for mark in _ELLIPSIS):
            assert unknown_options(words) == [], each.line
        else:
            assert problem(words) is None, f"{each.line}: {problem(words)}"


@pytest.mark.parametrize("each", [each for each in LINES if not each.block], ids=str)
def test_a_command_in_a_sentence_has_a_name_and_options_that_exist(each: Said) -> None:
    line = each.line.replace("|", " ")
    for words in ours(line):
        command_of([word for word in words if word not in _ELLIPSIS])
        assert unknown_options(words) == [], each.line


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("cxls analyse run.h5", "no command"),
        ("cxls analyze run.h5 --hit-rules peaks", "--hit-rules"),
        ("cxls analyze", "SOURCE"),
        ("cxls models shows default", "no command"),
        ("cxls bench", "NAME"),
        ("cxls evaluate parameters --nonsense", "--nonsense"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, wrong: str) -> None:
    (words,) = ours(line)
    assert wrong.lower() in str(problem(words)).lower()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cxls replay a.h5 --rate 100 &", [["replay", "a.h5", "--rate", "100"]]),
        ("cxls simulate x && cxls analyze x_master.h5", [["simulate", "x"], ["analyze", "x_master.h5"]]),
        ("ssh -t beamline cxls watch http://a:1", [["watch", "http://a:1"]]),
        ("CXLS_LOG_FORMAT=json .venv/bin/cxls demo --exit | cat", [["demo", "--exit"]]),
        ("cxls analyze a.h5 --cell '67 67 106 90 90 90'", [["analyze", "a.h5", "--cell", "67 67 106 90 90 90"]]),
        ("sudo -u cxls env A=b /opt/venv/bin/cxls doctor", [["doctor"]]),
        ("echo cxlsanalyze", []),
    ],
)
def test_calls_are_found_in_shell_lines(line: str, found: list[list[str]]) -> None:
    assert ours(line) == found


RUNS = re.compile(r"<!-- runs -->\n\n((?:    .*\n)+)")


def blocks_to_run() -> list[tuple[str, str]]:
    """(page, shell text) of every block that is marked as one that runs anywhere."""
    return [
        (str(page.relative_to(REPOSITORY)), "".join(line[4:] for line in found[1].splitlines(keepends=True)))
        for page in PAGES
        for found in RUNS.finditer(page.read_text())
    ]


def test_pages_have_blocks_that_run() -> None:
    assert len(blocks_to_run()) >= 3


@pytest.mark.parametrize(("page", "block"), blocks_to_run())
def test_a_block_that_is_marked_to_run_runs(page: str, block: str, tmp_path: Path) -> None:
    del page
    program = tmp_path / "bin" / "cxls"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cxls "$@"\n')
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    text = block.replace("31001", port).replace("/etc/cxls/cxls.toml", str(REPOSITORY / "deploy/site/cxls.toml"))
    variables = environment(
        PATH=f"{program.parent}:{os.environ['PATH']}", PYTHONPATH=str(REPOSITORY),
        CXLS_LISTEN="127.0.0.1:0", CXLS_BIND=f"tcp://127.0.0.1:{port}",
    )  # fmt: skip
    done = subprocess.run(
        ["timeout", "-k", "5", "150", "bash", "-euo", "pipefail", "-c", text + "\nwait\n"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
