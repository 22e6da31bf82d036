"""Pictures of the dashboards for the docs: python -m tests.deploy.preview FOLDER"""

import sys
import tempfile
from pathlib import Path

from tests.deploy.preview.page import look, write_page
from tests.deploy.preview.panels import load, names
from tests.deploy.preview.scene import Scene, watched

SCENE = Scene(hit_fractions=(0.3, 0.05, 0.45), frames=30, repeats=40, rate_hz=25)
"""A jet that runs, one that has gone astray, one that is back: 3600 images in two and a half minutes."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.deploy.preview FOLDER")
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="cxls-preview-") as folder, watched(Path(folder), SCENE) as seen:
        for name in names():
            page = write_page(Path(folder) / f"{name}.html", load(name), seen.prometheus, seen.span)
            picture = out / f"grafana-{Path(name).stem}.png"
            look(page, picture)
            print(f"wrote {picture}")


if __name__ == "__main__":
    main()
