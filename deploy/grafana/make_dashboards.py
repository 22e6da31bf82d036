"""Write the Grafana dashboards: python deploy/grafana/make_dashboards.py [--check]

They are generated so that panels stay alike and are reviewed as code, and committed so that Grafana, and who has no
Python, can take them as they are. ``--check`` writes nothing and fails where a committed file is not what comes out.
"""

import argparse
import json
import sys
from pathlib import Path

import hit_finding
import operations
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """The files' names and their text."""
    science, service = (hit_finding.TITLE, hit_finding.UID), (operations.TITLE, operations.UID)
    made = {"hit-finding.json": hit_finding.dashboard(service), "operations.json": operations.dashboard(science)}
    return {
        name: json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, board in made.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="write the Grafana dashboards")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file would change")
    check = parser.parse_args().check
    stale = [name for name, text in dashboards().items() if not _is(FOLDER / name, text)]
    if check and stale:
        sys.exit(f"not what make_dashboards.py makes: {', '.join(stale)}; run it and commit them")
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(dashboards()[name], encoding="utf-8")
        print(f"wrote {FOLDER / name}")


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
