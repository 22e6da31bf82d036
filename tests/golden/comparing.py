"""Records against golden ones, field by field, and the table of what changed."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Cases = Mapping[str, Sequence[Record]]

RENEW = (
    "If the change is meant: run `python -m tests.golden.renew`, read its table and the diff, and commit the records "
    "with a sentence that says why they moved."
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Two numbers agree when they differ by at most ``absolute`` plus ``relative`` times the golden one."""

    absolute: float = 0.0
    relative: float = 0.0

    def __add__(self, other: "Tolerance") -> "Tolerance":
        return Tolerance(self.absolute + other.absolute, self.relative + other.relative)

    def excess(self, golden: float, found: float) -> float:
        """The difference in units of what is allowed; infinite where none is."""
        difference = abs(found - golden)
        allowed = self.absolute + self.relative * abs(golden)
        if difference == 0.0:
            return 0.0
        return difference / allowed if allowed > 0.0 and math.isfinite(difference) else math.inf


# Records are rounded, so the least that can differ is one of the last digit; a hair more, as decimals are not binary.
TOLERANCES: dict[str, Tolerance] = {
    "hit_probability": Tolerance(absolute=2.1e-6),
    "peaks.fs": Tolerance(absolute=1.01e-3),
    "peaks.ss": Tolerance(absolute=1.01e-3),
    "peaks.intensity_photons": Tolerance(1.01e-3, 1e-6),
    "peaks.snr": Tolerance(1.01e-3, 1e-6),
    "peaks.q_per_angstrom": Tolerance(absolute=1.01e-5),
    "peaks.resolution_angstrom": Tolerance(1.01e-4, 1e-6),
    "resolution_angstrom": Tolerance(absolute=1.01e-3),
    "background_photons": Tolerance(1.01e-3, 1e-8),
    "relative_flux": Tolerance(1.01e-5, 1e-8),
    "photon_energy_eV": Tolerance(1.01e-2, 1e-6),
    "photon_energy_sigma_eV": Tolerance(1.01e-2, 1e-6),
    "camera_length_m": Tolerance(1.01e-6, 1e-6),
    "camera_length_sigma_m": Tolerance(1.01e-6, 1e-6),
    "camera_length_over_energy_m_per_eV": Tolerance(relative=1e-6),
    "camera_length_over_energy_sigma_m_per_eV": Tolerance(relative=1e-6),
    "estimate_reason": Tolerance(relative=1e-3),
    "attributes.peak.probability": Tolerance(absolute=2.1e-6),
    "attributes.energy.probability": Tolerance(absolute=2.1e-6),
}
"""Of each field that is a number with a fraction, and of the numbers in a text. Every other field is equal or not."""

EXACT = Tolerance()

DEVICE = Tolerance(1e-5, 1e-5)
"""What kernels of a GPU may add to each of these (docs/decisions/0014): its logarithms, and the order of its sums."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one record. ``excess``: in units of its tolerance, infinite where there is none."""

    case: str
    series: str
    image: int
    field: str
    golden: Any
    found: Any
    excess: float

    @property
    def difference(self) -> float:
        """Of two numbers; infinite for anything else."""
        both = (self.golden, self.found)
        return abs(self.found - self.golden) if all(_is_number(each) for each in both) else math.inf

    @property
    def relative(self) -> float:
        """The difference in units of the golden number."""
        if not math.isfinite(self.difference) or not self.golden:
            return math.inf if self.difference else 0.0
        return self.difference / abs(self.golden)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(record: Record) -> Iterator[tuple[str, str, Any]]:
    """(where, field, value) of all that a record holds; peaks of a list share their fields' names."""
    stack: list[tuple[str, str, Any]] = [(name, name, value) for name, value in reversed(record.items())]
    while stack:
        where, field, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{where}.{key}", f"{field}.{key}", inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{where}[{n}]", field, inner) for n, inner in reversed(list(enumerate(value)))]
        else:
            yield where, field, value


def _excess(field: str, golden: Any, found: Any, more: Tolerance) -> float:
    tolerance = TOLERANCES[field] + more if field in TOLERANCES else EXACT
    if _is_number(golden) and _is_number(found):
        return tolerance.excess(golden, found)
    texts = isinstance(golden, str) and isinstance(found, str) and tolerance is not EXACT
    if texts and _NUMBER.sub("#", golden) == _NUMBER.sub("#", found):
        pairs = zip(_NUMBER.findall(golden), _NUMBER.findall(found), strict=True)
        return max((_text_excess(tolerance, *pair) for pair in pairs), default=0.0)
    return 0.0 if golden == found and type(golden) is type(found) else math.inf


def _text_excess(tolerance: Tolerance, golden: str, found: str) -> float:
    """Of numbers in a text, which are rounded there: one of the last digit is allowed as well."""
    digits = len(golden.partition(".")[2])
    return Tolerance(1.01 * 10.0**-digits, tolerance.relative).excess(float(golden), float(found))


_ABSENT = "absent"


def compare_record(case: str, golden: Record, found: Record, more: Tolerance = EXACT) -> list[Change]:
    """All fields that differ at all, whatever their tolerance."""
    ours, theirs = ({where: (field, value) for where, field, value in _leaves(each)} for each in (golden, found))
    changes = []
    for where, (field, value) in ours.items():
        other = theirs.get(where, (field, _ABSENT))[1]
        if value is other or (value == other and type(value) is type(other)):
            continue
        changes.append((field, value, other))
    changes += [(field, _ABSENT, value) for where, (field, value) in theirs.items() if where not in ours]
    of = case, golden["series"], golden["image_id"]
    return [Change(*of, field, a, b, _excess(field, a, b, more)) for field, a, b in changes]


def compare(golden: Cases, found: Cases, more: Tolerance = EXACT) -> list[Change]:
    """All that differs between records of the same cases, whole records that only one has included.

    ``more``: allowed beside the tolerance of a field that has one.
    """
    changes = []
    for case in [*golden, *(case for case in found if case not in golden)]:
        ours, theirs = (
            {(each["series"], each["image_id"]): each for each in of.get(case, ())} for of in (golden, found)
        )
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if key in ours and key in theirs:
                changes += compare_record(case, ours[key], theirs[key], more)
            else:
                has = [("a record" if key in of else _ABSENT) for of in (ours, theirs)]
                changes.append(Change(case, *key, "record", has[0], has[1], math.inf))
    return changes


def beyond(changes: Sequence[Change]) -> list[Change]:
    """Those that are more than their field's tolerance."""
    return [change for change in changes if change.excess > 1.0]


def table(changes: Sequence[Change]) -> str:
    """What changed, a line for each case and field, the biggest change first."""
    groups: defaultdict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.case, change.field].append(change)
    largest = {key: max(of, key=lambda each: (each.excess, each.relative)) for key, of in groups.items()}
    rows = [("case", "field", "records", "biggest at", "golden", "now", "times tolerance")]
    for key in sorted(groups, key=lambda key: (-largest[key].excess, -len(groups[key]), key)):
        most = largest[key]
        records = len({(each.series, each.image) for each in groups[key]})
        times = "exact" if math.isinf(most.excess) else f"{most.excess:.3g}"
        place = f"{most.series} {most.image}"
        rows.append((*key, str(records), place, _short(most.golden), _short(most.found), times))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- files --------------------------------------------------------------------------------


def written(records: Sequence[Record]) -> str:
    """Records as JSON in which a person reads a difference: a field a line, a peak a line."""
    return "[\n" + ",\n".join(_written(record) for record in records) + "\n]\n"


def _written(record: Record) -> str:
    lines = []
    for name, value in record.items():
        if isinstance(value, list) and value:
            inner = ",\n".join(f"      {json.dumps(each)}" for each in value)
            lines.append(f"    {json.dumps(name)}: [\n{inner}\n    ]")
        else:
            lines.append(f"    {json.dumps(name)}: {json.dumps(value)}")
    return "  {\n" + ",\n".join(lines) + "\n  }"


def read(folder: Path) -> dict[str, list[Record]]:
    """The golden records of each case that has a file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
