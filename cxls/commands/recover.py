"""``cxls data recover``: folders of hits finished and looked through."""

from collections.abc import Sequence
from pathlib import Path

import click

from analyzer.hits import recover, verify
from analyzer.hits.lists import Lists
from analyzer.hits.places import JOURNALS, holds_hits
from analyzer.hits.recover import KEPT
from cxls.cli import Failed
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, DataRecoverSettings, Resolved


def run(resolved: Resolved[DataRecoverSettings], folders: Sequence[Path]) -> None:
    """Finish each folder and print every problem in it; exit 1 when there is one."""
    for folder in folders:
        if not folder.is_dir():
            raise BadSettings(f"{folder}: no such folder; give the one that --hits named")
        if not holds_hits(folder):
            raise BadSettings(f"{folder}: no hits and no journal in it; give the folder that --hits named")
    problems = [problem for folder in folders for problem in _recover(folder, resolved.settings.verify)]
    if problems:
        raise Failed(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}, see above")


def _recover(folder: Path, look: bool) -> list[str]:
    found = recover(folder)
    problems = list(found.problems)
    try:
        problems += Lists(folder).refresh()
    except OSError as error:
        problems.append(f"{folder}: the lists cannot be written: {error.strerror or error}")
    looked = verify(folder)
    if look:
        with interruptible_progress("checking", "files") as after_file:
            problems += [problem for problem in looked.problems(after_file) if problem not in problems]
    for text in (*found.notes, *problems):
        click.echo(text)
    text = f"{folder}: {found.hits} hits of earlier runs put into {len(found.files)} files"
    if found.running:
        text += f"; {len(found.running)} analyses still write here"
    if kept := list((folder / JOURNALS).glob(f"*{KEPT}")):
        text += f"; {len(kept)} damaged journals kept in {folder / JOURNALS}"
    click.echo(f"{text}; {looked.hits} hits in {looked.files} files looked through" if look else text)
    return problems
