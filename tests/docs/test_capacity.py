"""The capacity tables are arithmetic on what the benchmarks printed, and nothing else."""

import math
import re
from dataclasses import dataclass

import pytest

from tests.support import REPOSITORY

CAPACITY = (REPOSITORY / "docs" / "capacity.md").read_text()
PERFORMANCE = (REPOSITORY / "docs" / "performance.md").read_text()
HALF = 0.5
PIXELS = {"4M": 2162 * 2068, "16M": 4362 * 4148}


def table(name: str) -> str:
    found = re.search(rf"<!-- bench {name} -->(.*?)<!-- /bench -->", PERFORMANCE, re.S)
    assert found, name
    return found[1]


def numbers(name: str, row: str) -> list[float]:
    """The numbers after a row's name in a benchmark's table."""
    line = next(line for line in table(name).splitlines() if line.startswith(row))
    return [float(each) for each in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", line[len(row) :])]


@dataclass(frozen=True)
class Source:
    """A detector at so many images a second; the flux says how full its images are."""

    name: str
    size: str
    rate_hz: float
    flux: str

    @property
    def packed_mb(self) -> float:
        """As measured of a 4M, by the pixels of a larger one."""
        return numbers("scaling", f"{self.flux} photons")[5] * PIXELS[self.size] / PIXELS["4M"]

    @property
    def cpu_ms(self) -> float:
        if self.size == "4M":
            return numbers("scaling", f"{self.flux} photons")[4]
        assert self.flux == "3e08"
        return numbers("scaling", "16M, 4362 x 4148")[4]

    @property
    def line(self) -> str:
        busy = self.rate_hz * self.cpu_ms / 1000
        cells = (
            self.name,
            f"{self.rate_hz:.0f}",
            f"{self.packed_mb:.2f}",
            f"{8e-3 * self.rate_hz * self.packed_mb:.1f}",
            f"{self.cpu_ms:.3g}",
            f"{busy:.3g}",
            f"{math.ceil(busy / HALF)}",
            f"{512 * 1.048576 / (self.rate_hz * self.packed_mb):.2g}",
        )
        return "| " + " | ".join(cells) + " |"


SOURCES = [
    Source("EIGER2 4M, compact source", "4M", 1000, "3e08"),
    Source("EIGER2 4M, its full rate", "4M", 2250, "3e08"),
    Source("EIGER2 4M, its full rate, bright", "4M", 2250, "3e10"),
    Source("16M", "16M", 100, "3e08"),
    Source("16M", "16M", 500, "3e08"),
    Source("4M of a 10 kHz source", "4M", 10_000, "3e08"),
    Source("4M of a 10 kHz source, bright", "4M", 10_000, "3e10"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda each: f"{each.name} {each.rate_hz:.0f}")
def test_a_row_is_what_the_formula_makes_of_the_measured_figures(source: Source) -> None:
    assert source.line in CAPACITY.splitlines(), f"docs/capacity.md needs the line\n{source.line}"


SAMPLED = [SOURCES[0], SOURCES[1], SOURCES[4], SOURCES[5]]


@pytest.mark.parametrize("cores", [2, 8, 16, 32, 64])
def test_the_share_that_is_analysed_follows_from_the_cores(cores: int) -> None:
    every = [math.ceil(each.rate_hz * each.cpu_ms / 1000 / (HALF * cores)) for each in SAMPLED]
    line = "| " + " | ".join([str(cores), *("all" if k <= 1 else f"1 in {k}" for k in every)]) + " |"
    assert line in CAPACITY.splitlines(), f"docs/capacity.md needs the line\n{line}"


def test_what_one_process_sends_on_follows_from_its_shares() -> None:
    out, back = (
        numbers("workers", f"0.18 MB, 500 a second, TCP: {what}")[0] / 100 / 500
        for what in ("handed out", "outcomes taken back")
    )
    receive = round(numbers("front", "v2, 0.2 MB: python")[0]) * 1e-6
    told = f"is {out * 1e6:.0f} and {back * 1e6:.0f} microseconds an image"
    rate = f"sends on {1 / (receive + out + back):.0f} images a second"
    for each in (told, f"With {receive * 1e6:.0f} to receive it", rate):
        assert each in " ".join(CAPACITY.split())


@pytest.mark.parametrize(
    ("bench", "row", "which", "text"),
    [
        ("front", "v2, 0.2 MB: front, all dropped", 0, "{:.0f} images a second of 0.2 MB"),
        ("front", "v2, 1.1 MB: front, all dropped", 0, "{:.0f} of 1.1 MB"),
        ("front", "v2, 0.2 MB: python", 0, "it takes {:.0f} to"),
        ("front", "v2, 1.1 MB: python", 0, "to {:.0f} microseconds of Python"),
        ("memory", "one series: resident after warm-up", 0, "{:.0f} MiB once warm"),
        ("hits-to-disk", "hits a second", 0, "{:.0f} hits of 1.14 MB a second"),
        ("end-to-end", "live v2: rate", 0, "a live stream was analysed at {:.0f} frames a second at best"),
        ("scaling", "ratio  2 workers / one, frames a second:", 0, "analysed {} times as much as one"),
        ("end-to-end", "over ZeroMQ, v2, 50% of its highest", 3, "came within {:.0f} ms, at three quarters"),
        ("end-to-end", "over ZeroMQ, v2, 75% of its highest", 3, "three quarters within {:.0f} ms"),
        ("cascade", "the paper's network for hit or miss", 0, "costs {:.0f} ms of CPU a frame"),
        ("workers", "0.18 MB, 500 a second, TCP: handed out", 0, "handed out for {} % of a core"),
        ("workers", "0.18 MB, 500 a second, TCP: outcomes taken back", 0, "taken back for {} % at 500"),
        ("workers", "0.18 MB, flat out, TCP, there and back", 0, "it was {:.0f} a second"),
    ],
)
def test_a_figure_in_the_text_is_the_benchmarks(bench: str, row: str, which: int, text: str) -> None:
    assert text.format(numbers(bench, row)[which]) in " ".join(CAPACITY.split())
