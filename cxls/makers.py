"""Analysers as settings want them, for the CPU or for a device."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from analyzer.attribute_cascade import open_models
from analyzer.attribute_model import AttributeModel
from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, PlanCache, asks_for_pixels
from analyzer.cuda import device as devices
from analyzer.cuda.compiler import default_cache
from analyzer.cuda.device import full_precision, is_device_fault
from analyzer.cuda.engine import DevicePrograms, open_programs
from analyzer.judge import Judge
from streamer.errors import first_line

log = logging.getLogger(__name__)


class Makers:
    """Makes the analysers of a run: for the CPU, or for a device with one for the CPU that takes over from it.

    ``models`` are on the device. The judges' bundle is on the CPU; the device's copy is made here. ``plans``: those of
    the latest series, for all analysers.
    """

    def __init__(self, device: str, models: tuple[AttributeModel, ...], folders: Sequence[Path]) -> None:
        self._device, self._models = device, models
        self.plans = PlanCache()
        self._spare_models = models if device == "cpu" else open_models(folders, "cpu")
        self._copy: Bundle | None = None
        self._programs: DevicePrograms | None = None
        if device == "cpu":
            return
        full_precision()
        try:
            self._programs = open_programs(device, default_cache())
        except RuntimeError as error:
            log.warning("frames are unpacked and reduced on the CPU: %s", error)

    def reduces_there(self, judge: Judge) -> bool:
        """Whether frames are unpacked and reduced on a device."""
        return self._programs is not None and not asks_for_pixels(judge.settings, judge.bundle)

    def make(self, judge: Judge, failed: bool = False) -> Analyser:
        """An analyser; of the CPU alone where the device ``failed`` before, or is lost."""
        spare = Analyser(judge.bundle, replace(judge.settings, models=self._spare_models), "cpu", self.plans)
        if self._device == "cpu" or failed or devices.lost(self._device) is not None:
            return spare
        try:
            if self._copy is None or self._copy.label != judge.bundle.label:
                self._copy = judge.bundle.copy_on(self._device)
            return Analyser(self._copy, judge.settings, self._device, self.plans, self._programs, spare)
        except Exception as error:
            # A change of bundle must not be refused for it, nor a worker's set-up: the CPU does the work.
            if not is_device_fault(error):
                raise
            log.exception("the device failed; the CPU judges the frames")
            if not devices.is_full(error):
                devices.lose(torch.device(self._device), first_line(error))
            return spare
