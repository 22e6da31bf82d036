"""Photon energy and camera length from what the frames themselves show.

In: profiles, spots, a prior; out: estimates with their uncertainties, and why where there is none."""
