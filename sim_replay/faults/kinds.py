"""Every fault that the replay can commit: what it does, how many images it touches, where an account shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

TRICKLE_IMAGES, TRICKLE_S = 5, 0.2
BURST_IMAGES, BURST_PAUSE_S = 12, 0.5
LATE_IMAGES = 4
"""How many later images overtake one that is delayed."""

THIEF_IMAGES = 8
CLOCK_IMAGES = 4


class Where(StrEnum):
    """What of a series a fault happens to; the chance of a fault is one for each of these."""

    IMAGE = "image"
    START = "start"
    END = "end"
    REST = "rest"
    """One image and all that follow."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault. ``images`` is how many in a row it touches; ``expected`` says where a consumer's account shows it."""

    name: str
    text: str
    expected: str
    where: Where = Where.IMAGE
    images: int = 1
    streams: tuple[str, ...] = ("v1", "v2")


_BOTH = (
    Kind("drop_image", "an image is not sent", "missing.gap, at the end of a series missing.tail"),
    Kind(
        "drop_start",
        "the start is not sent; nothing else happens to that series",
        "announced is less by its images; the series is joined after 3 images, none is missing",
        Where.START,
    ),
    Kind(
        "drop_end",
        "the end is not sent",
        "series_ended.end message is one less, series_ended of another reason one more",
        Where.END,
    ),
    Kind("duplicate_image", "an image is sent twice", "dropped.duplicate"),
    Kind("duplicate_start", "the start is sent again before an image",
         "oddities.repeated_start: it replaces the metadata"),
    Kind("double_end", "the end is sent twice", "oddities.repeated_end: a series ends once", Where.END),
    Kind(
        "end_overtakes",
        "the end comes before the last image",
        "missing.tail and dropped.stale_series: what is over stays over",
        Where.END,
    ),
    Kind("reorder", "an image and the next change places", "oddities.late_image: ids are counted in any order",
         images=2),
    Kind(
        "delay_image",
        f"an image comes after the {LATE_IMAGES} that follow it",
        "oddities.late_image; in its record's received_at",
        images=1 + LATE_IMAGES,
    ),
    Kind("truncate_payload", "the second half of an image's packed pixels is missing", "undecodable.bad_block"),
    Kind(
        "truncate_message",
        "an image's message ends in the middle (v1: before the pixels)",
        "undecodable.missing_data",
    ),
    Kind("corrupt_header", "what describes an image's pixels is damaged", "undecodable.bad_header"),
    Kind(
        "corrupt_payload",
        "a block length (bare LZ4: a token) in an image's packed pixels is damaged",
        "undecodable.bad_block",
    ),
    Kind(
        "flip_bits",
        "16 bits anywhere in an image's packed pixels are flipped",
        "undecodable.bad_block or undecodable.size_mismatch; or nothing, where the bytes still decode: neither stream "
        "carries a checksum",
    ),
    Kind(
        "corrupt_message",
        "an image's message is damaged before its ids (v1: JSON, v2: CBOR)",
        "invalid.malformed, and the image missing.gap or missing.tail",
    ),
    Kind("wrong_size", "an image claims one row more than it has", "undecodable.size_mismatch"),
    Kind("wrong_dtype", "an image claims to be of 32-bit floats", "undecodable.unknown_dtype"),
    Kind("wrong_channel", "an image has the channel difference alone", "undecodable.missing_channel", streams=("v2",)),
    Kind(
        "shape_change",
        "a good image of 64 x 64 pixels in a series of another shape",
        "undecodable.size_mismatch; where the header told no shape (v1, --header-detail none) it is analysed",
    ),
    Kind("out_of_range", "one more image, its id beyond all that was announced", "dropped.out_of_range"),
    Kind("stale_series", "one more image, of an earlier series", "dropped.stale_series"),
    Kind("foreign_message", "bytes of another protocol", "invalid.malformed"),
    Kind(
        "malformed",
        "a message of the corpus of malformed messages, instead of an image or beside it",
        "invalid or undecodable, each by the reason that the corpus says; nothing where only its frills have no sense",
    ),
    Kind(
        "oversize",
        "a message part larger than a consumer takes (512 MiB), which ends the connection; images wait for the next",
        "invalid.too_large",
    ),
    Kind("early_end", "the series is aborted at an image: its end comes, its other images do not",
         "missing.tail", Where.REST),
    Kind(
        "rearm_without_end",
        "the series breaks off without end, and a new one with the next id begins with the images that are left",
        "missing.tail, series_ended.new start; announced is more by the images that were left",
        Where.REST,
    ),
    Kind(
        "reboot",
        "as rearm_without_end, and ids count from 1 again",
        "missing.tail, series_ended.new start; announced is more by the images that were left",
        Where.REST,
    ),
    Kind(
        "burst_after_pause",
        f"{BURST_IMAGES} images are held back for {BURST_PAUSE_S:g} s or longer, then come at once",
        "oddities.pause; in latency, in the queue's length, and under --on-full drop where it overflows",
        images=BURST_IMAGES,
    ),
    Kind(
        "slow_trickle",
        f"{TRICKLE_IMAGES} images come {TRICKLE_S:g} s apart",
        "oddities.pause, once or more; in the rate",
        images=TRICKLE_IMAGES,
    ),
    Kind(
        "disconnect",
        "the connection closes once all is handed over, an image is lost while nobody listens, the port is bound again",
        "missing.gap, at the end of a series missing.tail",
    ),
    Kind(
        "second_puller",
        f"a second PULL socket connects while {THIEF_IMAGES} images are sent, and takes about every other one",
        "missing.gap, as many as it took",
        images=THIEF_IMAGES,
    ),
    Kind(
        "clock_24h",
        f"the detector's clock stands just before 24 h, and after {CLOCK_IMAGES // 2} images begins again at 0",
        "oddities.clock_jump, oddities.clock_back; in start_time of records",
        images=CLOCK_IMAGES,
    ),
    Kind(
        "clock_jump",
        f"the detector's clock is an hour ahead for {CLOCK_IMAGES // 2} images, then an hour behind for as many",
        "oddities.clock_jump, oddities.clock_back; in start_time of records",
        images=CLOCK_IMAGES,
    ),
)  # fmt: skip

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _BOTH}
"""By name, in the order in which they are told."""


def table() -> list[tuple[str, str, str, str]]:
    """Name, chance of, what it does, where it shows: a row for each kind."""
    rows = []
    for kind in KINDS.values():
        chance = "image" if kind.where == Where.IMAGE else "series"
        only = "" if len(kind.streams) == 2 else f" (stream {kind.streams[0]} alone)"
        rows.append((kind.name, chance, kind.text + only, kind.expected))
    return rows
