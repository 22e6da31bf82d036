"""The golden series by the kernels: on the CPU, from the same source, and on a device where there is one."""

from pathlib import Path

import pytest
import torch

from analyzer.cascade import Analyser, PlanCache
from analyzer.cuda.engine import DevicePrograms
from analyzer.judge import Judge
from cxls.makers import Makers
from cxls.settings import JudgeSettings
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import programs
from tests.golden.analysing import Record, records_of
from tests.golden.cases import CASES, RECORDS
from tests.golden.comparing import DEVICE, EXACT, Tolerance, beyond, compare, read, table

GOLDEN = read(RECORDS)

BY_KERNELS = ("default", "rule-peaks", "rule-either", "rule-both", "geometry-and-mask", "channel-1", "channel-2")
"""Cases of which frames are unpacked and reduced there; other finders and single models want the pixels."""


def assert_golden(case: str, found: list[Record], more: Tolerance) -> None:
    changes = beyond(compare({case: GOLDEN[case]}, {case: found}, more))
    assert not changes, f"the kernels' records are not the CPU's\n{table(changes)}"


@pytest.fixture(scope="module")
def host(host_decoder: HostProgram) -> DevicePrograms:
    return DevicePrograms(host_decoder, programs())


@pytest.mark.parametrize("case", BY_KERNELS)
def test_the_kernels_on_the_cpu_give_the_golden_records(case: str, host: DevicePrograms) -> None:
    reduced: list[Analyser] = []

    def make(judge: Judge, settings: JudgeSettings) -> Analyser:
        plans = PlanCache()
        fallback = Analyser(judge.bundle, judge.settings, "cpu", plans)
        reduced.append(Analyser(judge.bundle, judge.settings, "cpu", plans, host, fallback))
        return reduced[-1]

    assert_golden(case, records_of(CASES[case], make, batch=4), EXACT)
    assert reduced[0].fault is None


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("case", CASES)
def test_a_device_gives_the_golden_records(case: str, batch: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made: list[Analyser] = []

    def make(judge: Judge, settings: JudgeSettings) -> Analyser:
        makers = Makers("cuda", judge.cascade.models, [Path(folder) for folder in settings.model])
        assert makers.reduces_there(judge) is (case in BY_KERNELS)
        made.append(makers.make(judge))
        return made[-1]

    assert_golden(case, records_of(CASES[case], make, batch=batch, device="cuda"), DEVICE)
    assert made[0].fault is None
