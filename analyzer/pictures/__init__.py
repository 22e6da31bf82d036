"""Pictures of a run, drawn by a process of their own.

In: what a run shows at one time (``Snapshot``) and its curves, as ``ProductPicture`` and ``CurvePicture``.
Out: PNG.
May import: ``streamer``, numpy, msgspec, matplotlib; of ours only ``geometry``, ``product_snapshot`` and ``logs``, as
the process that draws has to be small.
"""

from analyzer.pictures.process import NoPicture, Pictures
from analyzer.pictures.products import FIGURES
from analyzer.pictures.requests import CurvePicture, Draw, ProductPicture, Request, drawn

__all__ = ["FIGURES", "CurvePicture", "Draw", "NoPicture", "Pictures", "ProductPicture", "Request", "drawn"]
