"""The digital twin: simulated diffraction in Eiger files, and an Eiger on the wire.

In: a crystal, a beam, a detector; or existing HDF5 series.
Out: HDF5 series with their truth; stream v1 or v2 messages of a series, from a server that
a consumer cannot tell from a detector.
May import: ``streamer``.

The way of a frame through it:

    what is there    crystal (structure, cells, wilson, salts) · beam · detector · background (scatter) · distractors
                     together a scene
    what happens     diffraction: reflections and their streaks · poisson: photons · response: counts · artefacts
                     together a shot, with its truth
    what is kept     series_file, filled by simulation (our own shots) or importing (crystfel's patterns)
    for training     crop and batch: windows of frames, by the loops of a frame or in torch on any device
    on the wire      recordings ─▶ pace ─▶ wire ─▶ replay; simplon* is the detector's control interface
"""
