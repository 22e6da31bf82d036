"""What a run is doing, in a word, told from what ``/status`` says of it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """The terminal view and the control system show the same words."""

    NOT_READY = "not ready"
    """warming up, or ending"""
    DISCONNECTED = "disconnected"
    """ready, and the detector's socket has no peer"""
    IDLE = "idle"
    """connected, and no series is open"""
    RUNNING = "running"
    """a series began that is not over"""
    OVER = "over"
    """nothing will come any more, and everything is published"""


def state_of(status: Mapping[str, Any]) -> State:
    """The state; a key that is missing says nothing against the run."""
    if status.get("over") is True:
        return State.OVER
    if status.get("ready", True) is not True:
        return State.NOT_READY
    if status.get("connected", True) is not True:
        return State.DISCONNECTED
    return State.RUNNING if status.get("series_open", True) is True else State.IDLE
