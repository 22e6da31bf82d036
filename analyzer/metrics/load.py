"""How busy the analysis is: times, queues, workers."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from analyzer.cascade import STAGES
from analyzer.front import Front
from analyzer.metrics.families import buckets, counter, gauge
from analyzer.running import STAGE_BUCKETS_S, Histogram, Running
from analyzer.worker_load import WorkerLoad

BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def times(running: Running) -> Iterator[Metric]:
    """From arrival to result, and in each stage."""
    with running.lock:
        latency = HistogramMetricFamily(
            "cxls_receive_to_result_seconds", "From the message's arrival to its published result"
        )
        latency.add_metric([], *buckets(running.latency))
        stages = HistogramMetricFamily(
            "cxls_stage_seconds", "Time a frame spends in each stage, observed once a batch", labels=["stage"]
        )
        for stage in STAGES:
            stages.add_metric([stage], *buckets(running.stages.get(stage) or Histogram(STAGE_BUCKETS_S)))
    yield latency
    yield stages


def queue(front: Front) -> Iterator[Metric]:
    """The queue in front of the workers, and what it held up."""
    ring = front.ring
    for name, text, value in (
        ("cxls_queue_capacity_frames", "Most images that a queue holds", ring.capacity),
        ("cxls_queue_bytes", "Memory of the images in a queue", ring.held_bytes),
        ("cxls_queue_capacity_bytes", "Most memory of the images in a queue", ring.capacity_bytes),
    ):
        family = GaugeMetricFamily(name, text, labels=["queue"])
        family.add_metric(["frames"], value)
        yield family
    yield gauge(
        "cxls_sender_waits", "1 where the sender waits while the queue is full, 0 where images are dropped then",
        float(front.settings.block),
    )  # fmt: skip
    yield counter(
        "cxls_backpressure_seconds", "Time that the reader waited for room in the queue, and the sender with it",
        front.blocked_s,
    )  # fmt: skip


def workers(front: Front) -> Iterator[Metric]:
    """What each worker did; those of other processes together are one."""
    yield from of_loads(front.worker_loads)
    yield gauge(
        "cxls_unserved_seconds", "For how long nobody has been ready to analyse, here or elsewhere", front.unserved_s
    )
    yield gauge("cxls_device_faults", "Workers whose device failed, that use the CPU now", len(front.device_faults))


def of_loads(loads: Sequence[WorkerLoad]) -> Iterator[Metric]:
    """What workers did, by their place."""
    busy = CounterMetricFamily("cxls_worker_busy_seconds", "Time that a worker spent on frames", labels=["worker"])
    frames = CounterMetricFamily("cxls_worker_frames", "Images that a worker took", labels=["worker"])
    for number, load in enumerate(loads):
        busy.add_metric([str(number)], load.seconds)
        frames.add_metric([str(number)], load.frames)
    yield busy
    yield frames
    yield counter(
        "cxls_decoded_bytes",
        "Bytes of pixels that were unpacked from images",
        sum(load.decoded_bytes for load in loads),
    )
    yield _batches(loads)


def _batches(loads: Sequence[WorkerLoad]) -> HistogramMetricFamily:
    counts: dict[int, int] = {}
    for load in loads:
        for size, batches in dict(load.batches).items():
            counts[size] = counts.get(size, 0) + batches
    edges = [*((str(edge), edge) for edge in BATCH_EDGES), ("+Inf", max(counts, default=0))]
    family = HistogramMetricFamily("cxls_batch_frames", "Images that a worker took at once")
    family.add_metric(
        [],
        [(text, float(sum(n for size, n in counts.items() if size <= edge))) for text, edge in edges],
        float(sum(size * n for size, n in counts.items())),
    )
    return family
