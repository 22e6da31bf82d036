"""Files that were given and are not for the frames that came."""

from analyzer.logs import Repeats
from analyzer.reduction import FramePlan


def tell_unfit(plan: FramePlan, repeats: Repeats) -> list[str]:
    """Log which of the geometry file and the mask given is not for such frames, and what is done without it; which."""
    found = []
    if unfit := plan.geometry.unfit:
        repeats.warning("geometry", f"geometry: {unfit}; the header's geometry is used instead", "geometry_unfit")
        found.append("geometry")
    if unfit := plan.validity.unfit:
        repeats.warning("mask", f"mask: {unfit}; it is left aside", "mask_unfit")
        found.append("mask")
    return found
