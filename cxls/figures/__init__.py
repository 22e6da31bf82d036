"""Figures of the documentation, drawn with the program as it is, and the tables that go with them.

A module a figure or a few that belong together; each has functions from a `Request` to a `Drawn`. Seeds are fixed, so
that the same version draws the same pictures.
"""
