"""``cxls crystals``: the ready cells."""

import math

import click
from rich.console import Console
from rich.table import Table

from sim_replay.cells import READY_CELLS


def run() -> None:
    """Print the table."""
    table = Table("name", "crystal", "PDB", "cell, angstrom and degrees", "space group", "Da", box=None, pad_edge=False)
    for name, entry in READY_CELLS.items():
        edges, angles = entry.cell[:3], entry.cell[3:]
        cell = " ".join(f"{edge:.5g}" for edge in edges)
        if not all(math.isclose(angle, 90.0) for angle in angles):
            cell += "  " + " ".join(f"{angle:.4g}" for angle in angles)
        table.add_row(name, entry.title, entry.pdb_id, cell, entry.space_group, f"{entry.mass_da:.0f}")
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(highlight=False, width=150).print(table)
    click.echo("Example: cxls simulate runs/lysozyme --crystal lysozyme --frames 200")
