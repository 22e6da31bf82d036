"""The digital twin: simulated diffraction in Eiger files, and an Eiger on the wire.

In: a crystal, a beam, a detector; or existing HDF5 series.
Out: HDF5 series with their truth; stream v1 or v2 messages of a series, from a server that
a consumer cannot tell from a detector.
May import: ``streamer``.
"""
