"""The GPU's way from packed bytes to reduced frames: what ``analyzer.reduction`` does, for a batch at once.

In: packed images of one series. Out: what ``Reduced`` and ``Workspace`` hold of each. It imports CUDA only when a
device is asked for; the kernels are compiled by NVRTC when the program starts, without a compiler on the machine.
"""
