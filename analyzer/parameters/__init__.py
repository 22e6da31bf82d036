"""Photon energy and camera length from a frame's, or a run's, diffuse scattering and Bragg spots.

In: profiles of the diffuse scattering by ring and azimuth (``profile``), spots of hits of a known cell
(``bragg_spots``). Out: a joint posterior of ln(L/E) and ln E with its reasons (``fit``, ``bragg``), what of it may be
published (``claims``) and what of the header it contradicts (``header``). May import: ``streamer`` and what of the
analyser reduces frames.
"""
