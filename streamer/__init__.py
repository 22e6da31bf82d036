"""The detector's side: bytes in, frames out.

In: ZeroMQ messages of an Eiger (stream v1 or v2), or HDF5 files behind the same interface.
Out: series, frames that hold a view of the compressed image, decoded pixels in the caller's
buffer, and the account of what was received, lost or refused.
May import: numpy, numba, pyzmq, h5py, bitshuffle, cbor2, msgspec; nothing of ours.
"""

import os

# bitshuffle and torch bring OpenMP; workers own whole frames, so a thread pool inside one
# frame only fights them. It has to be set before either is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
