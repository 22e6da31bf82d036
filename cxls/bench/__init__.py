"""Benchmarks against peers, one module each. They measure; they gate nothing.

Every benchmark simulates its own frames, alternates with its peer in the same process and
run, and reports the least and the median over rounds. On a shared machine absolute times
wander; the ratio within a run is the figure to keep.
"""
