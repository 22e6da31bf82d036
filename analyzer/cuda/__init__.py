"""The GPU's way from packed bytes to reduced frames: what ``analyzer.reduction`` does, for a batch at once.

In: packed images of one series. Out: what ``Reduced`` and ``Workspace`` hold of each. It imports CUDA only when a
device is asked for; the kernels are compiled by NVRTC when the program starts, without a compiler on the machine.

A batch is taken from a ``staging.Ring``; ``decode.BatchDecoder`` puts frames into it until one finds no room; then
``Batch.upload``, ``BatchDecoder.decode``, whatever reads the pixels, and ``decode.failure`` of each frame's error word.
The batch goes back when all of that is done on the device. ``program.NoDevice`` and any other ``RuntimeError`` from
here mean that the CPU has to do the work; a batch is only a copy, so its frames can be decoded again.
"""
