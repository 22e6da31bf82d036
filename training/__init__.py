"""Training: simulated or labelled series in, model bundles and evaluation reports out.

In: the simulator's shots, or series with truth.
Out: bundles (card and weights) with their measured performance.
May import: ``streamer``, ``analyzer``, ``sim_replay``.
"""
