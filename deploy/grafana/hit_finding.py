"""The dashboard of those who run the experiment: are there hits, and can the numbers be believed?"""

from grafana_foundation_sdk.models import dashboard as model
from panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Limit,
    Line,
    Panel,
    Row,
    Text,
    assemble,
    bars,
    curves,
    histogram,
    metric,
    number,
    rate,
    states,
)

UID = "cxls-hit-finding"
TITLE = "Hit finding"
WINDOWS = ("100", "1000")
QUANTITIES = ("photon_energy", "camera_length", "camera_length_or_photon_energy", "beam_center")


def dashboard(other: tuple[str, str]) -> model.Dashboard:
    """The dashboard; ``other`` is the title and uid of the one beside it."""
    return assemble(
        UID,
        TITLE,
        "What the running analysis finds: hits, peaks, photon energy, camera length. See docs/grafana.md and "
        "docs/metrics.md of the analyser.",
        other,
        (_now(), _hit_rate(), _rates(), _patterns(), _beam(), _trust(), _series(), _series_ends(), *_indexing()),
    )


def _now() -> Row:
    hits = metric("cxls_collected_total", of="hits")
    indexable = metric("cxls_collected_total", of="indexable")
    return Row(
        4,
        (
            *(_latest_ratio(window) for window in WINDOWS),
            number(
                Text(
                    "Frame rate",
                    "Images received a second over the last minute.",
                    alerts=("CxlsNoFramesWhileArmed",),
                ),
                "hertz",
                [Line(metric("cxls:frame_rate:1m"), "received")],
                decimals=1,
            ),
            number(
                Text("Collected", "Hits, and images with enough peaks to index, since the analysis started."),
                "none",
                [Line(hits, "hits", BLUE), Line(indexable, "indexable", GREEN)],
                decimals=0,
                curve=False,
                names=True,
            ),
            number(
                Text(
                    "Photon energy",
                    "From the scattering of the run so far. Empty until the data determine it; the panel below has "
                    "its uncertainty.",
                ),
                "ev",
                [Line(metric("cxls_photon_energy_electronvolts", statistic="estimate"), "estimate")],
                decimals=3,
                low=None,
            ),
            number(
                Text(
                    "Camera length",
                    "Sample to detector, from the scattering of the run so far. Empty until the data determine it; "
                    "the panel below has its uncertainty.",
                ),
                "lengthm",
                [Line(metric("cxls_camera_length_meters", statistic="estimate"), "estimate")],
                decimals=1,
                low=None,
            ),
        ),
        heading="Now",
    )


def _latest_ratio(window: str) -> Panel:
    return number(
        Text(
            f"Hit rate, latest {window}",
            f"Hits among the latest {window} images with beam, by image id, as called by the model.",
        ),
        "percentunit",
        [Line(metric("cxls_hit_ratio", window=window), "hit rate")],
        high=1,
        decimals=1,
    )


def _hit_rate() -> Row:
    return Row(8, tuple(_ratio_with_band(window) for window in WINDOWS), heading="Hit rate")


def _ratio_with_band(window: str) -> Panel:
    def corrected(bound: str) -> str:
        return metric("cxls_hit_ratio_corrected", window=window, bound=bound)

    return curves(
        Text(
            f"Hit rate of the latest {window} images",
            f"Hits among the latest {window} images with beam. Corrected: with the false hits removed that the "
            "calibration, or the bundle, expects; its band is the interval of 95 %.",
            alerts=("CxlsHitRatioCollapsed", "CxlsHitRatioStuckAtOne") if window == WINDOWS[0] else (),
        ),
        "percentunit",
        [
            Line(corrected("low"), "low", ORANGE),
            Line(corrected("high"), "high", ORANGE, down_to="low"),
            Line(corrected("estimate"), "corrected", ORANGE),
            Line(metric("cxls_hit_ratio", window=window), "as called", BLUE),
            *([Line(metric("cxls:hit_ratio:1m"), "of the last minute", GREY)] if window == WINDOWS[0] else []),
        ],
        high=1,
        decimals=0,
    )


def _rates() -> Row:
    return Row(
        8,
        (
            curves(
                Text(
                    "Frame rate against the detector's",
                    "Images received and images analysed a second; dashed, what the header of the latest series "
                    "says the detector takes. Analysed below received is lost or waits.",
                ),
                "hertz",
                [
                    Line(f"sum({rate('cxls_frames_received_total')})", "received", BLUE),
                    Line(f"sum({rate('cxls_frames_processed_total')})", "analysed", GREEN),
                    Line(metric("cxls_detector_frame_rate_hertz"), "detector", GREY, dashed=True),
                ],
                decimals=1,
            ),
            curves(
                Text(
                    "Hits and indexable images a minute",
                    "How fast data come in that are worth keeping: hits, and images with enough peaks to index.",
                ),
                "short",
                [
                    Line(f"60 * {rate('cxls_collected_total', of='hits')}", "hits", BLUE),
                    Line(f"60 * {rate('cxls_collected_total', of='indexable')}", "indexable", GREEN),
                ],
                decimals=1,
            ),
            curves(
                Text(
                    "Indexable ratio",
                    "Images with enough peaks to index (--indexable-peaks) among the latest with beam.",
                ),
                "percentunit",
                [
                    Line(metric("cxls_indexable_ratio", window="100"), "latest 100", SKY),
                    Line(metric("cxls_indexable_ratio", window="1000"), "latest 1000", BLUE),
                ],
                high=1,
                decimals=0,
            ),
        ),
    )


def _patterns() -> Row:
    buckets = f"sum by (le) ({rate('cxls_peaks_per_frame_bucket')})"
    return Row(
        8,
        (
            curves(
                Text(
                    "Peaks a frame",
                    "Half, nine tenths and 99 % of the images with beam have fewer peaks than the curve.",
                ),
                "short",
                [
                    Line(f"histogram_quantile({q}, {buckets})", name, color)
                    for q, name, color in ((0.5, "median", BLUE), (0.9, "90 %", ORANGE), (0.99, "99 %", PURPLE))
                ],
                decimals=0,
            ),
            histogram(
                Text(
                    "Peaks a frame, all images",
                    "How many images had so many peaks. A band away from zero is crystals; one that never changes "
                    "is more likely ice, salt or hot pixels.",
                ),
                "short",
                "cxls_peaks_per_frame",
            ),
            histogram(
                Text(
                    "Hit probability, all images",
                    "How many images the model gave so high a probability. Two bands, at 0 and at 1, are as it "
                    "should be; much in between is a model that does not know these images.",
                ),
                "percentunit",
                "cxls_hit_probability",
            ),
        ),
        heading="Patterns",
    )


def _beam() -> Row:
    words = {0: ("agrees", BLUE), 1: ("disagrees", RED)}
    names = [quantity.replace("_", " ") for quantity in QUANTITIES]
    return Row(
        8,
        (
            _against_header("Photon energy", "cxls_photon_energy_electronvolts", "ev", 3),
            _against_header("Camera length", "cxls_camera_length_meters", "lengthm", 1),
            states(
                Text(
                    "Header against the data",
                    "Where the data contradict the header beyond their uncertainty, three looks in a row.",
                    alerts=("CxlsHeaderDisagrees",),
                    without="before the first estimate",
                ),
                [
                    Line(metric("cxls_header_mismatch", quantity=quantity), name)
                    for quantity, name in zip(QUANTITIES, names, strict=True)
                ],
                words,
            ),
        ),
        heading="Beam and geometry",
    )


def _against_header(title: str, name: str, unit: str, decimals: int) -> Panel:
    estimate, sigma = metric(name, statistic="estimate"), metric(name, statistic="sigma")
    return curves(
        Text(
            f"{title} against the header's",
            "From the scattering of the run so far, with a band of one standard deviation to each side; dashed, what "
            "the header says. The curve begins once the data determine it.",
        ),
        unit,
        [
            Line(f"{estimate} - ignoring (statistic) {sigma}", "estimate − σ", BLUE),
            Line(f"{estimate} + ignoring (statistic) {sigma}", "estimate + σ", BLUE, down_to="estimate − σ"),
            Line(estimate, "estimate", BLUE),
            Line(metric(name, statistic="header"), "header", GREY, dashed=True),
        ],
        low=None,
        decimals=decimals,
    )


def _trust() -> Row:
    saturated = f"sum({rate('cxls_saturated_frames_total')}) / (sum({rate('cxls_frames_processed_total')}) > 0)"
    return Row(
        7,
        (
            curves(
                Text(
                    "Saturated images",
                    "Share of the images with saturated pixels; a high one asks for an attenuator.",
                ),
                "percentunit",
                [Line(saturated, "saturated", PURPLE)],
                high=1,
                decimals=0,
            ),
            curves(
                Text(
                    "Relative flux",
                    "Scattering of the water against that of the bundle's training: 1 is as bright as there.",
                ),
                "none",
                [Line(metric("cxls_relative_flux_ratio"), "relative flux", GREEN)],
                decimals=2,
            ),
            curves(
                Text(
                    "Background",
                    "Photons of the scattering a frame, over a batch. It falls with the beam and with the jet.",
                ),
                "short",
                [Line(metric("cxls_background_photons"), "photons a frame", SKY)],
            ),
            curves(
                Text(
                    "Drift of the scores",
                    "How far the scores of the latest misses are from those of the calibration or of the bundle: 0 "
                    "the same, 1 nothing in common.",
                    alerts=("CxlsModelDrift",),
                    without="before 300 images, and without a reference",
                ),
                "none",
                [Line(metric("cxls_score_drift_ratio"), "from the {{reference}}")],
                decimals=3,
                limits=[Limit(0.05, ORANGE)],
                named=("from the calibration", "from the bundle"),
            ),
        ),
    )


def _series() -> Row:
    received, announced = metric("cxls_frames_received_total"), metric("cxls_frames_announced_total")
    return Row(
        6,
        (
            states(
                Text("Series", "Whether a series has begun and is not over."),
                [Line(metric("cxls_series_open"), "series")],
                {0: ("idle", GREY), 1: ("running", BLUE)},
            ),
            curves(
                Text(
                    "Announced and received",
                    "Images that the detector announced and that came, since the analysis started. At the end of a "
                    "series the two are equal, unless some never came.",
                ),
                "none",
                [Line(announced, "announced", GREY, dashed=True), Line(received, "received", BLUE)],
                decimals=0,
            ),
            curves(
                Text(
                    "Time since the last image",
                    "Since the last image came, and since the last one analysed that saw the beam. If both rise, "
                    "the detector sends nothing; if the second alone does, the shutter is shut or the source is off.",
                    alerts=("CxlsNoFramesWhileArmed", "CxlsNoBeam"),
                ),
                "s",
                [
                    Line(f"clamp_min(time() - {metric('cxls_last_frame_timestamp_seconds')}, 0)", "image", BLUE),
                    Line(
                        f"clamp_min(time() - {metric('cxls_last_beam_timestamp_seconds')}, 0)",
                        "image with beam",
                        ORANGE,
                    ),
                ],
                decimals=1,
            ),
            number(
                Text(
                    "Series and images",
                    "Series begun and ended, images announced, received and missing, since the start.",
                ),
                "none",
                [
                    Line(metric("cxls_series_begun_total"), "begun"),
                    Line(f"sum({metric('cxls_series_ended_total')})", "ended"),
                    Line(announced, "announced"),
                    Line(received, "received"),
                    Line(f"sum({metric('cxls_frames_missing_total')})", "missing"),
                ],
                decimals=0,
                curve=False,
                names=True,
            ),
        ),
        heading="Series",
    )


def _series_ends() -> Row:
    return Row(
        6,
        (
            number(
                Text("Last series", "The series that was over last: its id, its images, hits and missing images."),
                "none",
                [
                    Line(metric("cxls_last_series_id"), "id"),
                    Line(metric("cxls_last_series_frames"), "{{what}}"),
                ],
                decimals=0,
                curve=False,
                names=True,
            ),
            bars(
                Text("How series ended", "Series that are over, by what ended them, since the analysis started."),
                "none",
                [Line(metric("cxls_series_ended_total"), "{{why}}")],
                decimals=0,
            ),
            bars(
                Text(
                    "Images that never came",
                    "Announced images that never came, by their place in the series, counted when it is over.",
                    alerts=("CxlsFrameGaps",),
                ),
                "none",
                [Line(metric("cxls_frames_missing_total"), "{{where}}")],
                decimals=0,
                limits=[Limit(1, ORANGE)],
            ),
        ),
    )


def _indexing() -> tuple[Row, ...]:
    without = "without an indexer that answers (--index-stream)"
    return (
        Row(
            7,
            (
                curves(
                    Text(
                        "Indexed ratio",
                        "Indexed hits among the latest that the indexer looked at.",
                        without=without,
                    ),
                    "percentunit",
                    [
                        Line(metric("cxls_indexed_ratio", window="100"), "latest 100", SKY),
                        Line(metric("cxls_indexed_ratio", window="1000"), "latest 1000", BLUE),
                    ],
                    high=1,
                    decimals=0,
                ),
                curves(
                    Text(
                        "Cell edges",
                        "Median edges of the most frequent lattice among the latest 1000 crystals.",
                        without=without,
                    ),
                    "lengthm",
                    [
                        Line(metric("cxls_cell_length_meters", axis=axis, statistic="median"), axis, color)
                        for axis, color in (("a", BLUE), ("b", ORANGE), ("c", GREEN))
                    ],
                    low=None,
                    decimals=2,
                ),
                curves(
                    Text(
                        "Cell angles",
                        "Median angles of the most frequent lattice among the latest 1000 crystals.",
                        without=without,
                    ),
                    "degree",
                    [
                        Line(metric("cxls_cell_angle_degrees", angle=angle, statistic="median"), letter, color)
                        for angle, letter, color in (
                            ("alpha", "α", BLUE),
                            ("beta", "β", ORANGE),
                            ("gamma", "γ", GREEN),
                        )
                    ],
                    low=None,
                    decimals=2,
                ),
            ),
            heading="Indexing",
        ),
    )
