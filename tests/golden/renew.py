"""The reviewed change of golden records: ``python -m tests.golden.renew [CASE ...]``.

Prints what changed by case and field, the biggest change first, and writes the records that changed by more than their
tolerances. A record within them stays as it is, so that another machine's last digits make no diff.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.golden.analysing import Record, records_of
from tests.golden.cases import CASES, RECORDS
from tests.golden.comparing import beyond, compare, read, table, written


def renewed(golden: Sequence[Record], found: Sequence[Record]) -> list[Record]:
    """The records found, but golden ones where they agree within tolerances."""
    before = {(each["series"], each["image_id"]): each for each in golden}
    kept = []
    for each in found:
        old = before.get((each["series"], each["image_id"]))
        same = old is not None and not beyond(compare({"": [old]}, {"": [each]}))
        kept.append(old if old is not None and same else each)
    return kept


def renew(folder: Path, found: Mapping[str, Sequence[Record]], every: bool) -> str:
    """Write what changed of the cases found, and say it. ``every``: these are all, others' files go."""
    golden = {name: records for name, records in read(folder).items() if every or name in found}
    changes = beyond(compare(golden, found))
    if not changes:
        return "no golden record changed"
    folder.mkdir(exist_ok=True)
    changed = {change.case for change in changes}
    for name in sorted(changed):
        path = folder / f"{name}.json"
        if name in found:
            path.write_text(written(renewed(golden.get(name, ()), found[name])))
        else:
            path.unlink()
    return (
        f"{table(changes)}\nwritten: {', '.join(sorted(changed))}; read the diff, and say in the commit why they moved"
    )


def main(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in CASES]:
        sys.exit(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    found = {name: records_of(CASES[name]) for name in names or CASES}
    print(renew(RECORDS, found, every=not names))


if __name__ == "__main__":
    main(sys.argv[1:])
