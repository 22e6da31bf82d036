"""Pictures of the dashboards for the docs: python -m tests.deploy.preview FOLDER"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.deploy.preview.page import look, write_page
from tests.deploy.preview.panels import load, names
from tests.deploy.preview.scene import Scene, watched

SCENE = Scene(hit_fractions=(0.3, 0.05, 0.45), frames=20, repeats=24, rate_hz=12, flux=1e9)
"""A jet that runs, one that has gone astray, one that is back: 1440 images in two minutes."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.deploy.preview FOLDER")
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="cxls-preview-") as folder, watched(Path(folder), SCENE) as seen:
        for name in names():
            page = write_page(Path(folder) / f"{name}.html", load(name), seen.prometheus, seen.span)
            picture = out / f"grafana-{Path(name).stem}.png"
            look(page, picture)
            # Drawings have few colours: a palette of 256 is a third of the file.
            Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
            print(f"wrote {picture}")


if __name__ == "__main__":
    main()
