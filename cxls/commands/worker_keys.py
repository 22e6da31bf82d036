"""``cxls worker-keys``: a pair of keys for the link between a front and its workers."""

from pathlib import Path

import click

from cxls.key_files import make_keys


def run(name: Path) -> None:
    """Write NAME.secret and NAME.public, and say which is which. Raises ``BadSettings``."""
    secret, public = make_keys(name)
    click.echo(f"{secret}: stays here (--worker-key)")
    click.echo(f"{public}: goes to the other side, a line of --worker-keys on the front, --front-key on workers")
