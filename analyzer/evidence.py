"""What a 3 x 3 window says of a spot, to be added up over a frame.

Significance asks whether one window is more than chance. Many spots that are each too weak to be sure of say as much
together, and there the right thing to add is the logarithm of a likelihood ratio (Neyman and Pearson, Phil. Trans. R.
Soc. A 231, 1933, 289). A window where b counts are expected holds with chance ``rate`` a spot of s photons more, all s
from ``SPOT_PHOTONS`` alike on a logarithmic scale; n counts then say

    ln(1 + rate (E_s[exp(-s) (1 + s/b)^n] - 1))

of which what no count says is taken off, so that empty windows need not be visited. Windows around all counting pixels
overlap; the sum is a score, not a probability, and the network has the background beside it to learn its scale.
"""

import numpy as np
import numpy.typing as npt

RATES = (1e-5, 1e-4)
"""Spots a window: a few a frame, and some hundred. The first finds the few of a weak pulse among nothing, the second
the many whose pixels count but once a pulse."""

SPOT_PHOTONS = np.geomspace(1.0, 100.0, 12)
MOST_COUNTS = 127
"""More counts say what these do: that there is a spot."""

LOG_LOWEST, LOG_STEP, _ROWS = float(np.log(1e-5)), 0.025, 600
"""Rows of the table are at logarithms of the expected counts of a window, to 32 counts: beyond, a spot that can be seen
at all is seen by its significance alone."""


def _table() -> npt.NDArray[np.float32]:
    counts = np.arange(MOST_COUNTS + 1)
    expected = np.exp(LOG_LOWEST + LOG_STEP * np.arange(_ROWS))[:, None, None]
    spots = SPOT_PHOTONS[None, :, None]
    log_ratio = np.logaddexp.reduce(counts * np.log1p(spots / expected) - spots, 1) - np.log(len(SPOT_PHOTONS))
    said = [np.logaddexp(np.log(rate) + log_ratio, np.log1p(-rate)) for rate in RATES]
    return np.stack([each - each[:, :1] for each in said]).astype(np.float32)


TABLE = _table()
"""(rates, rows, counts) float32 nats."""

BY_COUNTS = np.ascontiguousarray(np.moveaxis(TABLE, 0, 2))
"""(rows, counts, rates): what one window says lies side by side."""
