"""The GPU's way from packed bytes to reduced frames: what ``analyzer.reduction`` does, for a batch at once.

In: packed images of one series. Out: what ``Reduced`` and ``Workspace`` hold of each. It imports CUDA only when a
device is asked for; the kernels are compiled by NVRTC when the program starts, without a compiler on the machine.

``engine.Engine`` goes the whole way with a ``staging.Batch``, ``decode.BatchDecoder`` and ``reduce.BatchReducer``.
``compiler.NoDevice`` and any other ``RuntimeError`` from here mean that the CPU has to do the work; a batch is only a
copy, so its frames can be judged again.
"""
