"""Tables of a page from the JSON files that benchmarks wrote, so that a table is always what a command printed.

In the page, a table stands between ``<!-- bench NAME -->`` and ``<!-- /bench -->``, each on a line of its own.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cxls.bench.report import as_text, from_json

_TABLE = re.compile(r"^<!-- bench (?P<name>\S+) -->\n.*?^<!-- /bench -->$", re.MULTILINE | re.DOTALL)


class BadPage(ValueError):
    """A page or a table that cannot be put into it: one line with what, where and what to do."""


def read_tables(files: Iterable[Path]) -> dict[str, str]:
    """The printed table of each file by its benchmark's name. Raises ``BadPage``."""
    tables: dict[str, str] = {}
    for file in files:
        try:
            name, report, where = from_json(file.read_bytes())
        except OSError as error:
            raise BadPage(f"{file}: {error.strerror or error}; give a JSON file that a benchmark wrote") from None
        except ValueError as error:
            raise BadPage(f"{file}: {error}; give a JSON file that a benchmark wrote") from None
        if name in tables:
            raise BadPage(f"{file}: a second file of bench {name}; give one of each benchmark")
        tables[name] = as_text(report, where)
    return tables


def render(page: str, tables: Mapping[str, str]) -> tuple[str, list[str]]:
    """The page with these tables in their places, and the names of those placed; others in it stay as they are.

    Raises ``BadPage`` where a place is given twice or has no end.
    """
    places = [found["name"] for found in _TABLE.finditer(page)]
    opened = page.count("<!-- bench ")
    if len(places) != opened or page.count("<!-- /bench -->") != opened:
        raise BadPage("a table's place has no end, or an end no place; write <!-- bench NAME --> and <!-- /bench -->")
    for name in places:
        if places.count(name) > 1:
            raise BadPage(f"bench {name} has two places; leave one")

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in tables:
            return found[0]
        return f"<!-- bench {name} -->\n```\n{tables[name]}\n```\n<!-- /bench -->"

    return _TABLE.sub(fill, page), [name for name in places if name in tables]


def update(page: Path, files: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Replace the tables of a page; the names of those placed and of those that it has no place for.

    Raises ``BadPage``; the page is then as it was.
    """
    tables = read_tables(files)
    try:
        text = page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadPage(f"--page {page}: {error}; give a Markdown page with places for tables") from None
    try:
        changed, placed = render(text, tables)
    except BadPage as error:
        raise BadPage(f"--page {page}: {error}") from None
    page.write_text(changed)
    return placed, [name for name in tables if name not in placed]
