"""Photon energy and camera length from a frame's, or a run's, diffuse scattering.

In: radial profiles by azimuth (``profile``). Out: a joint posterior of ln(L/E) and ln E with its reasons (``fit``), and
what of it may be published (``claims``). May import: ``streamer`` and what of the analyser reduces frames.
"""
