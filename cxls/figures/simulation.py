"""The figures of docs/simulation.md by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cxls.figures.background import draw_background
from cxls.figures.crystfel import draw_crystfel
from cxls.figures.drawing import Drawer, Drawn, Request, house_style, save_png
from cxls.figures.frames import draw_conditions, draw_distractors
from cxls.figures.powder import draw_powder
from cxls.figures.response import draw_response
from cxls.figures.spots import draw_spots

FIGURES: dict[str, Drawer] = {
    "conditions": draw_conditions,
    "response": draw_response,
    "distractors": draw_distractors,
    "background": draw_background,
    "spot": draw_spots,
    "powder": draw_powder,
    "crystfel": draw_crystfel,
}


def draw(names: Sequence[str], out: Path, request: Request) -> Iterator[tuple[str, Drawn, tuple[Path, ...]]]:
    """Draw figures one after the other into the folder out; yields name, what was drawn, and the files written.

    Raises OSError, or ValueError for inputs that make no sense.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with house_style():
            drawn = FIGURES[name](request)
            paths = tuple(out / f"{file}.png" for file in drawn.figures)
            for path, figure in zip(paths, drawn.figures.values(), strict=True):
                save_png(figure, path)
        yield name, drawn, paths
