"""The networks of the 2024 paper "Crystallography Peak Detection at CXLS", written anew from its layer tables.

In: frames as float32 counts (B, 1, ss, fs), two of the networks with a second input.
Out: logits: (B,) for hit or miss, (B, classes) for classes, (B, ss, fs) for peaks.
May import: torch and ``analyzer``. ``registry`` is what the entry points of this distribution name.
"""
