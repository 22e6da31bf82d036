"""Command lines of ours, wherever they stand, held against the real command tree; nothing is run."""

import shlex
from collections.abc import Sequence

import click

from cxls.cli import cli


def command_of(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that ``words`` (without ``cxls``) name, and what follows. Raises ``ValueError`` with a sentence."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest or rest[0].startswith("-"):
            return command, rest
        below = command.commands.get(rest[0])
        if below is None:
            raise ValueError(
                f"no command {rest[0]!r} of {command.name}; there are {', '.join(sorted(command.commands))}"
            )
        command, rest = below, rest[1:]
    branch = getattr(command, "branches", {}).get(rest[0]) if rest else None
    return (command, rest) if branch is None else (branch, rest[1:])


def unknown_options(words: Sequence[str]) -> list[str]:
    """Options among ``words`` that their command does not have."""
    command, rest = command_of(words)
    known = {"--help", "-h"} | ({"--version"} if command is cli else set())
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def problem(words: Sequence[str]) -> str | None:
    """Why the program would refuse ``words`` (without ``cxls``) before it does anything; ``None`` if it takes them."""
    try:
        command, rest = command_of(words)
    except ValueError as error:
        return str(error)
    try:
        with command.make_context(str(command.name), rest):
            return None
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()


def ours(line: str) -> list[list[str]]:
    """The calls of ``cxls`` in a shell line, each as the words after it. Raises ``ValueError`` for open quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    taking, before = False, ""
    for word in lexer:
        if set(word) <= set("();<>|&"):
            taking = False
        elif taking:
            calls[-1].append(word)
        # A user may have the program's name: sudo -u cxls.
        elif (word == "cxls" and before != "-u") or word.endswith("/cxls"):
            taking = True
            calls.append([])
        before = word
    return calls
