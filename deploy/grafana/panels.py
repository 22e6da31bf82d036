"""What the dashboards are made of: queries, lines, panels, and rows that fill the grid.

Every panel says what it shows, in which unit, and which alerts it explains; colours are those of Okabe and Ito,
which people with any kind of colour vision can tell apart (Wong, Nature Methods 8, 2011, 441).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, statetimeline, table
from grafana_foundation_sdk.builders import timeseries as series
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = series.Panel | stat.Panel | bargauge.Panel | heatmap.Panel | statetimeline.Panel | table.Panel
P = TypeVar("P", series.Panel, stat.Panel, bargauge.Panel, heatmap.Panel, statetimeline.Panel, table.Panel)

COLUMNS = 24
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#999999"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY, YELLOW)
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def metric(name: str, **labels: str) -> str:
    """A selector of the chosen analysis; a value that begins with ``~`` is a regular expression."""
    parts = ['instance="$instance"']
    for label, value in labels.items():
        parts.append(f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"')
    return f"{name}{{{', '.join(parts)}}}"


def rate(name: str, **labels: str) -> str:
    """What a counter gains in a second, over a span that suits the picture's resolution."""
    return f"rate({metric(name, **labels)}[$__rate_interval])"


@dataclass(frozen=True)
class Line:
    """One curve: its query, its name (which may be a template of labels) and how it is drawn."""

    expr: str
    name: str
    color: str | None = None
    dashed: bool = False
    down_to: str | None = None
    """Fill the area down to the curve of this name: the upper edge of a band."""


@dataclass(frozen=True)
class Limit:
    """A value from which on a colour means something."""

    value: float
    color: str = RED


@dataclass(frozen=True)
class Text:
    """What a panel says in words.

    ``alerts`` are the alert rules that it explains. ``without`` completes "No data ...": where it is set, the
    panel may be empty although all is well.
    """

    title: str
    description: str
    alerts: tuple[str, ...] = ()
    without: str = ""

    @property
    def full(self) -> str:
        alerts = f" Alert{'s' if len(self.alerts) > 1 else ''}: {', '.join(self.alerts)}." if self.alerts else ""
        return self.description + alerts + (f" No data {self.without}." if self.without else "")


# --- panels -----------------------------------------------------------------------------


def curves(
    text: Text,
    unit: str,
    lines: Sequence[Line],
    *,
    low: float | None = 0,
    high: float | None = None,
    decimals: int | None = None,
    limits: Sequence[Limit] = (),
    stacked: bool = False,
    named: Sequence[str] = (),
    logarithmic: bool = False,
) -> series.Panel:
    """Curves against time; ``named`` are the names that a template gives, each with a colour of its own."""
    panel = _filled(series.Panel(), text, unit, lines, low, high, decimals, limits)
    panel = (
        panel.line_width(2)
        .fill_opacity(40 if stacked else 0)
        .show_points(shapes.VisibilityMode.AUTO)
        .point_size(4)
        .legend(_legend())
        .tooltip(
            common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING),
        )
        .color_scheme(_fixed_color(BLUE))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if limits:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED),
        )
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10))
    for place, name in enumerate(named):
        panel.override_by_name(name, [_color(PALETTE[place % len(PALETTE)])])
    floors = {line.down_to for line in lines}
    for line in lines:
        _drawn(panel, line, edge=bool(line.down_to) or line.name in floors)
    return panel


def number(
    text: Text,
    unit: str,
    lines: Sequence[Line],
    *,
    low: float | None = 0,
    high: float | None = None,
    decimals: int | None = None,
    limits: Sequence[Limit] = (),
    words: dict[int, tuple[str, str]] | None = None,
    curve: bool = True,
    names: bool = False,
) -> stat.Panel:
    """The latest values, large; ``words`` says and colours single values, ``names`` shows the names beside them."""
    panel = _filled(stat.Panel(), text, unit, lines, low, high, decimals, limits)
    graph = shapes.BigValueGraphMode.AREA if curve else shapes.BigValueGraphMode.NONE
    panel = (
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .graph_mode(graph)
        .color_mode(shapes.BigValueColorMode.VALUE)
        .text_mode(shapes.BigValueTextMode.VALUE_AND_NAME if names else shapes.BigValueTextMode.VALUE)
        .justify_mode(shapes.BigValueJustifyMode.AUTO)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    if words:
        panel.mappings([_words(words)])
    for line in lines:
        if line.color:
            panel.override_by_name(line.name, [_color(line.color)])
    return panel


def bars(
    text: Text,
    unit: str,
    lines: Sequence[Line],
    *,
    high: float | None = None,
    limits: Sequence[Limit] = (),
    decimals: int | None = None,
) -> bargauge.Panel:
    """The latest values as bars from 0."""
    panel = _filled(bargauge.Panel(), text, unit, lines, 0, high, decimals, limits)
    return (
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .value_mode(shapes.BarGaugeValueMode.TEXT)
        .name_placement(shapes.BarGaugeNamePlacement.LEFT)
        .show_unfilled(True)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )


def histogram(text: Text, unit: str, name: str) -> heatmap.Panel:
    """A histogram's buckets against time: how many observations fell into each."""
    expr = f"sum by (le) (increase({metric(name + '_bucket')}[$__rate_interval]))"
    panel = _filled(heatmap.Panel(), text, unit, [Line(expr, "{{le}}")], None, None, None, ())
    for target in panel.build().targets or []:
        target.format_val = PromQueryFormat.HEATMAP  # type: ignore[attr-defined]
    return (
        panel.calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Viridis").steps(64).min(0))
        .cell_gap(0)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("short").decimals(0))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(shapes.HeatmapCellLayout.LE))
        .show_legend()
        .mode(shapes.TooltipDisplayMode.SINGLE)
        .show_y_histogram()
    )


def states(text: Text, lines: Sequence[Line], words: dict[int, tuple[str, str]]) -> statetimeline.Panel:
    """What held when: a bar a line, coloured by ``words``."""
    panel = _filled(statetimeline.Panel(), text, "none", lines, None, None, 0, ())
    return (
        panel.mappings([_words(words)])
        .show_value(shapes.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
        .legend(_legend())
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.SINGLE))
    )


def labels_table(text: Text, expr: str, columns: dict[str, str]) -> table.Panel:
    """The labels of an instant query, a row a series; ``columns`` names them in their order."""
    hidden = ("Time", "Value", "__name__", "job")
    panel = _filled(table.Panel(), text, "none", [], None, None, None, ())
    panel.with_target(prometheus.Dataquery().expr(expr).ref_id("A").instant().format(PromQueryFormat.TABLE))
    order = {label: place for place, label in enumerate(columns)}
    options = {"excludeByName": dict.fromkeys(hidden, True), "indexByName": order, "renameByName": columns}
    panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=options))
    return panel.show_header(True).align(shapes.FieldTextAlignment.LEFT)


# --- the grid ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Panels side by side, all as high and as wide, from edge to edge; a ``heading`` stands above."""

    height: int
    panels: tuple[Panel, ...]
    heading: str = ""


def assemble(uid: str, title: str, description: str, other: tuple[str, str], rows: Sequence[Row]) -> model.Dashboard:
    """The dashboard; ``other`` is the title and uid of the one it links to."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["cxls"])
        .readonly()
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("5s")
        .timepicker(dashboard.TimePicker().refresh_intervals(["5s", "10s", "30s", "1m", "5m"]))
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(_datasource())
        .with_variable(_instance())
        .link(_link(other[0], f"/d/{other[1]}", keep=True))
    )
    # The analysis serves both itself, at the address that Prometheus scrapes; /metrics says what each metric means.
    made.link(_link("Live page", "http://${instance}/", keep=False))
    made.link(_link("Metrics and their meaning", "http://${instance}/metrics", keep=False))
    panels: list[model.Panel | model.RowPanel] = []
    y = 0
    for row in rows:
        width, rest = divmod(COLUMNS, len(row.panels))
        if rest:
            raise ValueError(f"{len(row.panels)} panels of {title} do not fill a row of {COLUMNS} columns evenly")
        if row.heading:
            heading = dashboard.Row(row.heading).id(len(panels) + 1).build()
            heading.grid_pos = model.GridPos(h=1, w=COLUMNS, x=0, y=y)
            panels.append(heading)
            y += 1
        for place, panel in enumerate(row.panels):
            position = model.GridPos(h=row.height, w=width, x=place * width, y=y)
            panels.append(panel.id(len(panels) + 1).grid_pos(position).build())
        y += row.height
    built = made.build()
    built.panels = panels
    return built


# --- parts ------------------------------------------------------------------------------


def _filled(
    panel: P,
    text: Text,
    unit: str,
    lines: Sequence[Line],
    low: float | None,
    high: float | None,
    decimals: int | None,
    limits: Sequence[Limit],
) -> P:
    """What every kind of panel has."""
    panel.title(text.title).description(text.full).datasource(SOURCE).unit(unit)
    panel.no_value(f"none {text.without}" if text.without else "none yet")
    steps = [model.Threshold(value=None, color=BLUE)]
    steps += [model.Threshold(value=limit.value, color=limit.color) for limit in limits]
    panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if decimals is not None:
        panel.decimals(decimals)
    for place, line in enumerate(lines):
        query = prometheus.Dataquery().expr(line.expr).legend_format(line.name).ref_id(chr(ord("A") + place)).range()
        panel.with_target(query)
    return panel


def _drawn(panel: series.Panel, line: Line, edge: bool) -> None:
    """How a curve departs from the others; the ``edge`` of a band has neither a line nor a place in the legend."""
    properties = []
    if line.color:
        properties.append(_color(line.color))
    if line.dashed:
        style = {"fill": "dash", "dash": [8, 6]}
        properties.append(model.DynamicConfigValue(id_val="custom.lineStyle", value=style))
    if line.down_to:
        properties.append(model.DynamicConfigValue(id_val="custom.fillBelowTo", value=line.down_to))
        properties.append(model.DynamicConfigValue(id_val="custom.fillOpacity", value=20))
    if edge:
        properties.append(model.DynamicConfigValue(id_val="custom.lineWidth", value=0))
        properties.append(model.DynamicConfigValue(id_val="custom.showPoints", value="never"))
        hidden = {"legend": True, "tooltip": False, "viz": False}
        properties.append(model.DynamicConfigValue(id_val="custom.hideFrom", value=hidden))
    if properties:
        panel.override_by_name(line.name, properties)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull"])
    )


def _color(color: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def _fixed_color(color: str) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId.SHADES).fixed_color(color)


def _words(words: dict[int, tuple[str, str]]) -> model.ValueMap:
    options = {str(value): model.ValueMappingResult(text=word, color=color) for value, (word, color) in words.items()}
    return model.ValueMap(options=options)


def _datasource() -> dashboard.DatasourceVariable:
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Prometheus")
        .type("prometheus")
        .current(model.VariableOption(selected=True, text="Prometheus", value="prometheus"))
    )


def _instance() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("instance")
        .label("Analysis")
        .datasource(SOURCE)
        .query("label_values(cxls_build_info, instance)")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _link(title: str, url: str, keep: bool) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(title)
        .type(model.DashboardLinkType.LINK)
        .icon("dashboard" if keep else "doc")
        .tooltip(title)
        .url(url)
        .keep_time(keep)
        .include_vars(keep)
        .target_blank(not keep)
    )
