"""The dashboard of those who keep the analysis running: is anything lost, late, full or broken?"""

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
    Row,
    Text,
    assemble,
    bars,
    curves,
    histogram,
    labels_table,
    metric,
    number,
    rate,
    states,
)

UID = "cxls-operations"
TITLE = "Operations"
DEADLINE_S = 1.0
"""As in the rule CxlsLatencyOverDeadline."""

STAGES = ("receive", "decode", "reduce", "infer", "peaks", "publish")
DROPPED = ("queue_full", "shutdown", "duplicate", "stale_series", "out_of_range", "sampled")
ODDITIES = ("repeated_start", "repeated_end", "late_image", "clock_back", "clock_jump", "pause")
OUTPUTS = ("results", "hits", "products", "reports")


FULL = Limit(0.8, ORANGE)
"""As in the rule CxlsQueueFilling."""


def alerts(state: str = ".+") -> str:
    """The alerts of the chosen analysis; one about what is absent has no instance."""
    return f'ALERTS{{alertname=~"Cxls.+", instance=~"$instance|", alertstate=~"{state}"}}'


def dashboard(other: tuple[str, str]) -> model.Dashboard:
    """The dashboard; ``other`` is the title and uid of the one beside it."""
    return assemble(
        UID,
        TITLE,
        "How the running analysis does: its account, its load, its outputs and what is wrong. See docs/grafana.md and "
        "docs/metrics.md of the analyser.",
        other,
        (_now(), _alerts(), _account(), _losses(), _latency(), _queue(), _workers(), _machine(), _gpu(), *_program()),
    )


def _now() -> Row:
    age = f"clamp_min(time() - {metric('cxls_last_frame_timestamp_seconds')}, 0)"
    queue = f"{metric('cxls_queue_frames', queue='frames')} / {metric('cxls_queue_capacity_frames', queue='frames')}"
    return Row(
        4,
        (
            number(
                Text("Scraped", "Whether Prometheus reaches the analysis.", alerts=("CxlsTargetAbsent",)),
                "none",
                [Line(metric("up", job="cxls"), "up")],
                words={0: ("absent", RED), 1: ("yes", BLUE)},
                curve=False,
            ),
            number(
                Text(
                    "Stream",
                    "Whether the analysis is connected to the detector's stream, or reads files.",
                    alerts=("CxlsNotConnected",),
                ),
                "none",
                [Line(metric("cxls_stream_connected"), "connected")],
                words={0: ("disconnected", RED), 1: ("connected", BLUE)},
                curve=False,
            ),
            number(
                Text(
                    "Last image",
                    "Time since the last image was received; long is bad only while a series runs.",
                    alerts=("CxlsNoFramesWhileArmed",),
                ),
                "s",
                [Line(age, "age")],
                decimals=1,
                limits=[Limit(30, ORANGE)],
            ),
            number(
                Text("Frame rate", "Images received a second over the last minute."),
                "hertz",
                [Line(metric("cxls:frame_rate:1m"), "received")],
                decimals=1,
            ),
            number(
                Text(
                    "Drop ratio",
                    "Share of the received images that the queue had no room for, or that were left at the end, "
                    "over the last minute.",
                    alerts=("CxlsFramesDropped",),
                ),
                "percentunit",
                [Line(metric("cxls:drop_ratio:1m"), "dropped")],
                high=1,
                decimals=1,
                limits=[Limit(1e-9, RED)],
            ),
            number(
                Text(
                    "Latency, 99 %",
                    "99 of 100 images of the last minute took less from their arrival to their result.",
                    alerts=("CxlsLatencyOverDeadline",),
                ),
                "s",
                [Line(metric("cxls:latency_p99_seconds:1m"), "99 %")],
                decimals=2,
                limits=[Limit(DEADLINE_S, ORANGE)],
            ),
            number(
                Text("Queue", "How full the queue in front of the workers is.", alerts=("CxlsQueueFilling",)),
                "percentunit",
                [Line(queue, "frames")],
                high=1,
                decimals=0,
                limits=[FULL],
            ),
            number(
                Text("Alerts firing", "How many alerts of this analysis fire; the rows below name them."),
                "none",
                [Line(f"count({alerts('firing')}) or vector(0)", "firing")],
                decimals=0,
                limits=[Limit(1, RED)],
            ),
        ),
        heading="Now",
    )


def _alerts() -> Row:
    return Row(
        6,
        (
            states(
                Text(
                    "Alerts",
                    "What was pending or firing when. docs/metrics.md and the rules themselves say what to do.",
                    without="while no alert is pending or fires",
                ),
                [Line(f"max by (alertname) ({alerts('pending')} or 2 * {alerts('firing')})", "{{alertname}}")],
                {1: ("pending", ORANGE), 2: ("firing", RED)},
            ),
            labels_table(
                Text(
                    "Alerts now",
                    "What is pending or fires at this moment.",
                    without="while no alert is pending or fires",
                ),
                alerts(),
                {"alertname": "Alert", "alertstate": "State", "severity": "Severity", "instance": "Analysis"},
            ),
        ),
    )


def _account() -> Row:
    received = metric("cxls_frames_received_total")
    return Row(
        8,
        (
            number(
                Text(
                    "Account",
                    "Images since the analysis started. Received = processed + dropped + undecodable + waiting, at "
                    "every scrape.",
                ),
                "none",
                [
                    Line(received, "received"),
                    Line(f"sum({metric('cxls_frames_processed_total')})", "processed"),
                    Line(f"sum({metric('cxls_frames_dropped_total')})", "dropped"),
                    Line(f"sum({metric('cxls_frames_undecodable_total')})", "undecodable"),
                    Line(f"sum({metric('cxls_queue_frames')})", "waiting"),
                    Line(f"sum({metric('cxls_frames_missing_total')})", "missing"),
                ],
                decimals=0,
                curve=False,
                names=True,
            ),
            curves(
                Text("Processed, by decision", "Images analysed a second, stacked, beside those received."),
                "hertz",
                [
                    Line(rate("cxls_frames_processed_total", decision="hit"), "hit", BLUE),
                    Line(rate("cxls_frames_processed_total", decision="miss"), "miss", SKY),
                    Line(rate("cxls_frames_processed_total", decision="no_beam"), "no beam", GREY),
                ],
                decimals=1,
                stacked=True,
            ),
            curves(
                Text(
                    "Received and processed",
                    "Images received and images analysed a second; a gap between the two waits or is lost.",
                ),
                "hertz",
                [
                    Line(f"sum({rate('cxls_frames_received_total')})", "received", BLUE),
                    Line(f"sum({rate('cxls_frames_processed_total')})", "processed", GREEN),
                    Line(f"sum({rate('cxls_frames_announced_total')})", "announced", GREY, dashed=True),
                ],
                decimals=1,
            ),
            curves(
                Text(
                    "Oddities, by kind",
                    "What was odd about the stream and cost no image, a minute: starts and ends said again, images out "
                    "of order, the detector's clock, pauses.",
                    alerts=("CxlsStreamOdd",),
                ),
                "short",
                [Line(f"60 * {rate('cxls_stream_oddities_total')}", "{{kind}}")],
                decimals=1,
                named=ODDITIES,
            ),
        ),
        heading="Account",
    )


def _losses() -> Row:
    return Row(
        7,
        (
            curves(
                Text(
                    "Dropped, by reason",
                    "Images not analysed a second. Only queue_full and shutdown are losses: the others "
                    "came twice, late or out of range, or that --sample leaves out.",
                    alerts=("CxlsFramesDropped",),
                ),
                "hertz",
                [Line(rate("cxls_frames_dropped_total"), "{{reason}}")],
                decimals=2,
                named=DROPPED,
            ),
            curves(
                Text(
                    "Undecodable, invalid",
                    "Images whose bytes did not decode, and messages refused, a second.",
                    alerts=("CxlsUndecodable", "CxlsInvalidMessages"),
                ),
                "hertz",
                [
                    Line(f"sum({rate('cxls_frames_undecodable_total')})", "undecodable", ORANGE),
                    Line(f"sum({rate('cxls_messages_invalid_total')})", "invalid", PURPLE),
                ],
                decimals=2,
            ),
            bars(
                Text(
                    "Missing, by place",
                    "Announced images that never came, since the analysis started; counted when a series is over.",
                    alerts=("CxlsFrameGaps",),
                ),
                "none",
                [Line(metric("cxls_frames_missing_total"), "{{where}}")],
                decimals=0,
                limits=[Limit(1, ORANGE)],
            ),
            curves(
                Text(
                    "Drop ratio over time",
                    "Share of the received images that the queue had no room for, or that were left at the end.",
                    alerts=("CxlsFramesDropped",),
                ),
                "percentunit",
                [Line(metric("cxls:drop_ratio:1m"), "last minute", RED)],
                high=1,
                decimals=1,
            ),
        ),
    )


def _latency() -> Row:
    seconds = f"sum by (stage) ({rate('cxls_stage_seconds_sum')})"
    frames = f"(sum by (stage) ({rate('cxls_stage_seconds_count')}) > 0)"
    return Row(
        8,
        (
            curves(
                Text(
                    "Latency",
                    "From an image's arrival to its published result, over the last minute; dashed, the deadline.",
                    alerts=("CxlsLatencyOverDeadline",),
                ),
                "s",
                [
                    Line(metric("cxls:latency_p50_seconds:1m"), "median", BLUE),
                    Line(metric("cxls:latency_p99_seconds:1m"), "99 %", ORANGE),
                ],
                decimals=2,
                limits=[Limit(DEADLINE_S, RED)],
            ),
            histogram(
                Text("Latency, all images", "How many images took so long from arrival to result."),
                "s",
                "cxls_receive_to_result_seconds",
            ),
            curves(
                Text("Time in each stage", "Mean seconds a frame in each stage, stacked: where the time goes."),
                "s",
                [Line(f"{seconds} / {frames}", "{{stage}}")],
                decimals=1,
                stacked=True,
                named=STAGES,
            ),
        ),
        heading="Latency",
    )


def _queue() -> Row:
    return Row(
        7,
        (
            curves(
                Text(
                    "Images waiting, against the room",
                    "Images in front of the workers and results behind them; dashed, the most that fit.",
                    alerts=("CxlsQueueFilling",),
                ),
                "short",
                [
                    Line(metric("cxls_queue_frames", queue="frames"), "frames", BLUE),
                    Line(metric("cxls_queue_frames", queue="results"), "results", GREEN),
                    Line(metric("cxls_queue_capacity_frames", queue="frames"), "room", GREY, dashed=True),
                ],
                decimals=0,
            ),
            curves(
                Text(
                    "Memory waiting, against the room",
                    "Memory of the waiting images; dashed, the most that --queue-mib allows.",
                    alerts=("CxlsQueueFilling",),
                ),
                "bytes",
                [
                    Line(metric("cxls_queue_bytes", queue="frames"), "frames", BLUE),
                    Line(metric("cxls_queue_capacity_bytes", queue="frames"), "room", GREY, dashed=True),
                ],
                decimals=0,
            ),
            curves(
                Text(
                    "Backpressure",
                    "Share of the time in which the reader waited for room in the queue, and with it the sender.",
                ),
                "percentunit",
                [Line(rate("cxls_backpressure_seconds_total"), "waiting", ORANGE)],
                high=1,
                decimals=0,
            ),
            curves(
                Text("Bytes a second", "Compressed bytes received, and bytes of the decoded images."),
                "Bps",
                [
                    Line(rate("cxls_received_bytes_total"), "received", BLUE),
                    Line(rate("cxls_decoded_bytes_total"), "decoded", ORANGE),
                ],
                decimals=1,
            ),
        ),
        heading="Load",
    )


def _workers() -> Row:
    frames = f"sum({rate('cxls_batch_frames_sum')}) / (sum({rate('cxls_batch_frames_count')}) > 0)"
    return Row(
        7,
        (
            curves(
                Text("Workers busy", "Share of the time that the workers spend on frames, over the last minute."),
                "percentunit",
                [Line(metric("cxls:worker_busy_ratio:1m"), "mean of all", BLUE)],
                high=1,
                decimals=0,
                limits=[Limit(0.9, ORANGE)],
            ),
            curves(
                Text(
                    "Nobody ready",
                    "For how long no worker has been ready, where all are other processes; images wait meanwhile.",
                    alerts=("CxlsNoWorkerReady",),
                ),
                "s",
                [Line(metric("cxls_unserved_seconds"), "nobody ready", RED)],
                decimals=0,
                limits=[Limit(60, RED)],
            ),
            curves(
                Text(
                    "Workers of other processes",
                    "How many are ready, starting, stalled or leaving.",
                    without="where all workers are threads of the analysis",
                ),
                "short",
                [Line(f"sum by (state) ({metric('cxls_crew_workers')}) > 0", "{{state}}")],
                decimals=0,
                named=("ready", "starting", "stalled", "leaving", "unfit"),
            ),
            bars(
                Text(
                    "Each worker busy",
                    "Share of the time that each worker spends on frames. All near 1: add workers.",
                ),
                "percentunit",
                [Line(rate("cxls_worker_busy_seconds_total"), "worker {{worker}}")],
                high=1,
                decimals=0,
                limits=[Limit(0.9, ORANGE)],
            ),
            curves(
                Text("Images of each worker", "Images that each worker takes a second; they should be alike."),
                "hertz",
                [Line(rate("cxls_worker_frames_total"), "worker {{worker}}")],
                decimals=1,
                named=tuple(f"worker {number}" for number in range(8)),
            ),
            curves(
                Text("Images a batch", "Mean number of images that a worker takes at once; at the most, work waits."),
                "short",
                [Line(frames, "images", GREEN)],
                decimals=1,
            ),
        ),
    )


def _machine() -> Row:
    free = f"{metric('cxls_disk_free_bytes')} / {metric('cxls_disk_size_bytes')}"
    return Row(
        7,
        (
            curves(
                Text("Processor", "Cores of the machine that the process uses."),
                "suffix:cores",
                [Line(rate("process_cpu_seconds_total"), "cores", BLUE)],
                decimals=2,
            ),
            curves(
                Text("Memory", "Memory of the process; a line that rises all day is a leak."),
                "bytes",
                [Line(metric("process_resident_memory_bytes"), "resident", BLUE)],
                decimals=1,
            ),
            bars(
                Text(
                    "Disk free",
                    "Free share of the disk that each output writes to.",
                    alerts=("CxlsDiskLow",),
                    without="without --results, --hits, --products or --reports",
                ),
                "percentunit",
                [Line(free, "{{output}}")],
                high=1,
                decimals=0,
            ),
            curves(
                Text(
                    "Outputs",
                    "Records and hits that could not be written, and hits that wait for the disk.",
                    alerts=("CxlsResultsLost",),
                ),
                "short",
                [
                    Line(metric("cxls_results_lost_total"), "records lost", RED),
                    Line(f"sum({metric('cxls_hits_lost_total')}) or vector(0)", "hits lost", ORANGE),
                    Line(f"sum({metric('cxls_hits_waiting')}) or vector(0)", "hits waiting", SKY),
                ],
                decimals=0,
            ),
        ),
        heading="Machine",
    )


def _gpu() -> Row:
    without = "without a CUDA device"
    nvml = "without a CUDA device, or without the extra nvml"
    return Row(
        6,
        (
            curves(
                Text("GPU memory", "Memory of the device that tensors hold; dashed, what it has.", without=without),
                "bytes",
                [
                    Line(metric("cxls_gpu_memory_allocated_bytes"), "allocated", BLUE),
                    Line(metric("cxls_gpu_memory_size_bytes"), "size", GREY, dashed=True),
                ],
                decimals=1,
            ),
            curves(
                Text("GPU load", "Share of the time in which the device ran a kernel.", without=nvml),
                "percentunit",
                [Line(metric("cxls_gpu_utilization_ratio"), "busy", BLUE)],
                high=1,
                decimals=0,
            ),
            curves(
                Text("GPU temperature", "Temperature of the device.", without=nvml),
                "celsius",
                [Line(metric("cxls_gpu_temperature_celsius"), "temperature", ORANGE)],
                decimals=0,
            ),
            states(
                Text(
                    "Devices in trouble",
                    "Whether heat or a fault of power holds the clock down, and whether a worker lost its GPU and uses "
                    "the CPU until the next start.",
                    alerts=("CxlsDeviceFault", "CxlsGpuThrottled"),
                    without="of the clock without a CUDA device, or without the extra nvml",
                ),
                [
                    Line(metric("cxls_gpu_throttled"), "clock held down"),
                    Line(f"clamp_max({metric('cxls_device_faults')}, 1)", "GPU lost"),
                ],
                {0: ("no", BLUE), 1: ("yes", RED)},
            ),
        ),
    )


def _program() -> tuple[Row, ...]:
    actions = f"sum by (action, outcome) (increase({metric('cxls_control_actions_total')}[$__range])) > 0"
    return (
        Row(
            6,
            (
                curves(
                    Text("Browsers", "Live pages that are open, and how many were turned away a minute."),
                    "short",
                    [
                        Line(metric("cxls_web_clients"), "pages", BLUE),
                        Line(f"60 * sum({rate('cxls_web_refused_total')})", "refused", RED),
                    ],
                    decimals=0,
                ),
                curves(
                    Text("To browsers", "Bytes sent to live pages a second."),
                    "Bps",
                    [Line(rate("cxls_web_bytes_total"), "sent", BLUE)],
                    decimals=1,
                ),
                curves(
                    Text("Log", "Warnings and errors in the log, a minute."),
                    "short",
                    [
                        Line(f"60 * {rate('cxls_log_messages_total', level='warning')}", "warnings", ORANGE),
                        Line(f"60 * {rate('cxls_log_messages_total', level='error')}", "errors", RED),
                    ],
                    decimals=1,
                ),
                bars(
                    Text(
                        "Control actions",
                        "What was asked of the running analysis in the time shown, and how it ended.",
                        without="without --control-token, or while nothing was asked",
                    ),
                    "short",
                    [Line(actions, "{{action}} {{outcome}}")],
                    decimals=0,
                ),
            ),
            heading="Program",
        ),
        Row(
            4,
            (
                labels_table(
                    Text("What runs", "Version of the program, of its libraries and of the model bundle."),
                    metric("cxls_build_info"),
                    {
                        "instance": "Analysis",
                        "version": "Version",
                        "bundle": "Bundle",
                        "python": "Python",
                        "torch": "PyTorch",
                    },
                ),
            ),
        ),
    )
