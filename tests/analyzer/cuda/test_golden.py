"""The golden series by the kernels: on the CPU, from the same source, and on a device where there is one."""

from pathlib import Path

import pytest
import torch

from analyzer import cascade
from analyzer.cascade import Analyser, PlanCache
from analyzer.cuda.engine import DevicePrograms
from analyzer.judge import Judge
from cxls.makers import Makers
from cxls.settings import JudgeSettings
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import programs
from tests.golden.analysing import MakeAnalyser, Record, records_of
from tests.golden.cases import CASES, RECORDS
from tests.golden.comparing import DEVICE, EXACT, Tolerance, beyond, compare, read, table

GOLDEN = read(RECORDS)

BY_KERNELS = ("default", "rule-peaks", "rule-either", "rule-both", "geometry-and-mask", "channel-1", "channel-2")
"""Cases of which frames are unpacked and reduced there; other finders and single models want the pixels."""

ON_THE_CPU = ("default", "rule-both", "geometry-and-mask", "channel-2")
"""Those that are done one block after the other, which takes long; rules decide behind the kernels."""


def assert_golden(case: str, found: list[Record], more: Tolerance) -> None:
    changes = beyond(compare({case: GOLDEN[case]}, {case: found}, more))
    assert not changes, f"the kernels' records are not the CPU's\n{table(changes)}"


@pytest.fixture
def host(host_decoder: HostProgram, monkeypatch: pytest.MonkeyPatch) -> DevicePrograms:
    # Places for frames of 4M pixels, of four series at once, are memory that a machine without a GPU may not have.
    monkeypatch.setattr(cascade, "MOST_FRAMES", 4)
    return DevicePrograms(host_decoder, programs())


def by_host(host: DevicePrograms, made: list[Analyser]) -> MakeAnalyser:
    """Makes analysers that reduce with the kernels on the CPU, and lists them."""

    def make(judge: Judge, settings: JudgeSettings) -> Analyser:
        plans = PlanCache()
        fallback = Analyser(judge.bundle, judge.settings, "cpu", plans)
        made.append(Analyser(judge.bundle, judge.settings, "cpu", plans, host, fallback))
        return made[-1]

    return make


def by_card(case: str, made: list[Analyser]) -> MakeAnalyser:
    """Makes analysers as ``cxls analyze --device cuda`` has them, and lists them."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def make(judge: Judge, settings: JudgeSettings) -> Analyser:
        makers = Makers("cuda", judge.cascade.models, [Path(folder) for folder in settings.model])
        assert makers.reduces_there(judge) is (case in BY_KERNELS)
        made.append(makers.make(judge))
        return made[-1]

    return make


@pytest.mark.parametrize("case", ON_THE_CPU)
def test_the_kernels_on_the_cpu_give_the_golden_records(case: str, host: DevicePrograms) -> None:
    made: list[Analyser] = []
    assert_golden(case, records_of(CASES[case], by_host(host, made), batch=4), EXACT)
    assert made[0].fault is None


def test_the_batch_changes_no_bit_of_the_kernels_records(host: DevicePrograms) -> None:
    case = CASES["geometry-and-mask"]
    plain = records_of(case, by_host(host, []), batch=1)
    assert records_of(case, by_host(host, []), batch=3, backwards=True) == plain


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("case", CASES)
def test_a_device_gives_the_golden_records(case: str, batch: int) -> None:
    made: list[Analyser] = []
    assert_golden(case, records_of(CASES[case], by_card(case, made), batch=batch, device="cuda"), DEVICE)
    assert made[0].fault is None


@pytest.mark.gpu
@pytest.mark.parametrize("case", BY_KERNELS)
def test_the_batch_changes_no_bit_of_a_device_s_records(case: str) -> None:
    plain = records_of(CASES[case], by_card(case, []), batch=1, device="cuda")
    found = records_of(CASES[case], by_card(case, []), batch=7, backwards=True, device="cuda")
    changes = compare({case: plain}, {case: found})
    assert not changes, table(changes)
