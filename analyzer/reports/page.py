"""A run as one HTML file: nothing beside it, no script, pictures inside, fit to print."""

import base64
import html
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from analyzer.changes import Changed
from analyzer.pictures import CurvePicture, Draw, NoPicture, ProductPicture, Request
from analyzer.reports.rows import utc
from analyzer.runs import Capture, Estimate, RunSummary

_SERIES_SHOWN = 20
_HALF, _HALF_DOTS_PER_INCH = 0.68, 169.0
"""Size and sharpness of pictures that stand side by side."""

_STYLE = """
:root { --ink: #1b2733; --soft: #5b6b79; --line: #d7dee4; --blue: #0072b2; --orange: #b24a00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.6rem 1.4rem 3rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 15px/1.45 system-ui, "Helvetica Neue", Arial, sans-serif; }
header { border-bottom: 2px solid var(--ink); padding-bottom: .7rem; margin-bottom: 1rem; }
h1 { font-size: 1.55rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.02rem; margin: 1.7rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p { margin: .3rem 0; }
.soft { color: var(--soft); }
.warn { color: var(--orange); font-weight: 600; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.4rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.numbers div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.numbers b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
.narrow td:first-child { white-space: nowrap; width: 1%; padding-right: 1.6rem; }
td.n, th.n { text-align: right; padding-right: 1.6rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: .3rem 0; }
img { max-width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; align-items: start; }
.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 2.2rem; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: .5rem; font-size: .82rem; }
@media (max-width: 44rem) { .pair, .columns { grid-template-columns: 1fr; } }
@media print { @page { margin: 14mm; } body { padding: 0; max-width: none; font-size: 10.5pt; }
  h2 { break-after: avoid; } img, tr, .numbers { break-inside: avoid; } }
"""


def make_page(capture: Capture, draw: Draw) -> bytes:
    """The report of a run, UTF-8. Takes seconds where its pictures are many; of one that ``draw`` cannot make it says
    why."""
    run = capture.summary
    info = run.info
    title = f"Run {info.name}" + (f": {info.sample}" if info.sample else "")
    return "".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta http-equiv='Content-Security-Policy' ",
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>{_safe(title)}</h1>{_times(run)}</header>",
            _numbers(run),
            _section("Notes", f"<pre>{_safe(info.notes)}</pre>") if info.notes else "",
            _section("Hit rate", _rates(capture, draw)),
            _section("Photon energy and camera length", _estimates(run) + _profile(capture, draw)),
            _section("Peaks of the hits", _products(capture, draw)),
            f"<div class='columns'><div>{_section('Account', _account(run))}</div>"
            f"<div>{_section('How frames were judged', _judging(run))}</div></div>",
            _section("Changes while it ran", _changes(capture.changes)),
            f"<footer class='soft'>cxls-analyzer {_safe(version('cxls-analyzer'))}, ",
            f"written {utc(time.time())}</footer>",
            "</body></html>\n",
        ]
    ).encode()


def _safe(text: object) -> str:
    return html.escape(str(text))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _times(run: RunSummary) -> str:
    ended = f"ended {_clock(run.until)}" if run.over else f"goes on; this is up to {_clock(run.until)}"
    return f"<p class='soft'>began {_clock(run.info.began_at)}, {ended}, {_duration(run.duration_s)}{_series(run)}</p>"


def _series(run: RunSummary) -> str:
    ids = run.counts.series_ids
    if not ids:
        return ", no series"
    shown = ", ".join(map(str, ids[-_SERIES_SHOWN:]))
    return f", series {'… ' if len(ids) > _SERIES_SHOWN else ''}{shown}"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _numbers(run: RunSummary) -> str:
    counts = run.counts
    rate = run.hit_rate
    tiles = [
        ("frames", f"{counts.frames:,}"),
        ("hits", f"{run.hits:,}"),
        ("hit rate, 95 % interval", "–" if rate is None else f"{rate[0]:.1%}"),
        ("indexable", f"{counts.indexable:,}"),
        *([] if counts.indexed is None else [("indexed", f"{counts.indexed:,}")]),
        ("median peaks a hit", "–" if counts.median_peaks is None else str(counts.median_peaks)),
        (
            "median resolution of hits",
            "–" if counts.median_resolution_angstrom is None else f"{counts.median_resolution_angstrom:.2f} Å",
        ),
        ("dropped", f"{sum(counts.dropped.values()):,}"),
    ]
    cells = [f"<div><b>{value}</b><span>{text}</span></div>" for text, value in tiles]
    if rate is not None:
        cells[2] = f"<div><b>{rate[0]:.1%}</b><span>hit rate, {rate[1]:.1%} to {rate[2]:.1%} at 95 %</span></div>"
    return f"<div class='numbers'>{''.join(cells)}</div>"


def _image(draw: Draw, request: Request, text: str) -> str:
    try:
        png = draw(request)
    except NoPicture as error:
        return f"<p class='warn'>{_safe(error)}</p>"
    if png is None:
        return ""
    return f"<img alt='{_safe(text)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _rates(capture: Capture, draw: Draw) -> str:
    curves, run = capture.curves, capture.summary
    pictures = ""
    if curves is not None:
        over_time = CurvePicture("rate_over_time", curves, run.info.began_at)
        pictures = _image(draw, over_time, "hit rate against time")
        pictures += _image(draw, CurvePicture("rate_over_images", curves), "hit rate against image")
    return (pictures or "<p class='soft'>No frame with beam.</p>") + _since(capture)


def _since(capture: Capture) -> str:
    """Curves and products may be of a part of the run alone; its counts never are."""
    if capture.gathered_since <= capture.summary.info.began_at + 1.0:
        return ""
    return f"<p class='soft'>Since {_clock(capture.gathered_since)}, when they were begun anew.</p>"


def _estimates(run: RunSummary) -> str:
    rows = [
        _estimate("photon energy (keV)", run.photon_energy_eV, 1e-3, 3),
        _estimate("camera length (mm)", run.camera_length_m, 1e3, 2),
    ]
    warnings = "".join(f"<p class='warn'>Header wrong? {_safe(text)}</p>" for text in run.mismatches)
    reason = f"<p class='soft'>Not determined: {_safe(run.estimate_reason)}</p>" if run.estimate_reason else ""
    head = ("", "from the data", "standard deviation", "header", "header − data, in standard deviations")
    return warnings + _table(head, rows) + _answers(run.answers) + reason


def _answers(answers: Mapping[str, float] | None) -> str:
    """The nearest keV and cm and the paper's classes, with the probability of each."""
    if answers is None:
        return ""

    def said(name: str, unit: str) -> str:
        return f"{answers[name]:.0f} {unit} ({answers[f'{name}_probability']:.1%})"

    nearest = f"{said('nearest_kev', 'keV')}, {said('nearest_cm', 'cm')}"
    classes = f"{said('paper_kev', 'keV')}, {said('paper_cm', 'cm')}"
    return f"<p class='soft'>Nearest whole: {nearest}. Of 6, 7, 8 keV and 15, 25, 35 cm: {classes}.</p>"


def _estimate(name: str, estimate: Estimate, factor: float, places: int) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value * factor:.{places}f}"

    pull = "–" if estimate.pull is None else f"{round(estimate.pull, 1) + 0.0:+.1f}"
    return name, shown(estimate.value), shown(estimate.sigma), shown(estimate.header), pull


def _profile(capture: Capture, draw: Draw) -> str:
    if capture.curves is None:
        return ""
    return _image(draw, CurvePicture("radial_profile", capture.curves), "radial profile")


def _products(capture: Capture, draw: Draw) -> str:
    products = capture.products
    if products is None:
        return "<p class='soft'>No frame.</p>"
    pairs = (("powder", "peakogram"), ("peak_counts", "resolution"))
    pictures = (
        "<div class='pair'>"
        + "".join(
            _image(draw, ProductPicture(name, products, _HALF_DOTS_PER_INCH, _HALF), name.replace("_", " "))
            for name in pair
        )
        + "</div>"
        for pair in pairs
    )
    return "".join(pictures) + _since(capture)


def _account(run: RunSummary) -> str:
    counts = run.counts
    frames = [
        ("hits", run.hits),
        ("misses", counts.processed["miss"]),
        ("without beam", counts.processed["no_beam"]),
        ("undecodable", counts.undecodable),
        *((f"dropped, {reason.replace('_', ' ')}", count) for reason, count in counts.dropped.items() if count),
    ]
    rows = [(name, f"{count:,}") for name, count in frames]
    rows.append(("all frames", f"{counts.frames:,}"))
    rows.append(("announced and never come", f"{counts.missing:,}"))
    return _table(("frames", ""), rows)


def _judging(run: RunSummary) -> str:
    judging = run.judging
    rows = [
        ("model bundle", judging.bundle),
        ("hit rule", judging.hit_rule),
        ("threshold", "–" if judging.threshold is None else f"{judging.threshold:.4g}"),
        ("peaks that make a hit, by rules on peaks", str(judging.min_peaks)),
        ("peaks that make a frame indexable", str(judging.indexable_peaks)),
        ("peak finder", judging.finder),
        ("extra mask", judging.mask or "none"),
        ("channel", judging.channel or "first threshold"),
    ]
    return _table(("at the end" if run.over else "now", ""), rows, numbers=False)


def _changes(changes: Iterable[Changed]) -> str:
    rows = [(_clock(changed.time), changed.text) for changed in changes]
    table = _table(("time", "change"), rows, numbers=False)
    return f"<div class='narrow'>{table}</div>" if rows else "<p class='soft'>None.</p>"


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]], numbers: bool = True) -> str:
    kind = " class='n'" if numbers else ""

    def line(tag: str, cells: Iterable[str]) -> str:
        first, *others = cells
        return f"<tr><{tag}>{_safe(first)}</{tag}>" + "".join(
            f"<{tag}{kind}>{_safe(cell)}</{tag}>" for cell in others
        ) + "</tr>"  # fmt: skip

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
