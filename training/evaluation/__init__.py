"""Evaluation of a bundle on series with truth: what it found, what could be found, and how sure that is.

`scoring` judges the frames, `metrics`, `calibration`, `peak_metrics` and `parameter_metrics` turn judgements into
figures, `ideal` and `blocks` say what the light itself allows, `peers` what a classical finder makes of the same
frames, `report` and `show` print it.
"""
