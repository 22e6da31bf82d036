"""Faults of a detector and of the network before it, committed on purpose and entered in a ledger.

``kinds`` is their table, ``plan`` draws which happen where, ``line`` stands between a series and the wire,
``ledger`` says what each has to show in a consumer's account, ``corpus`` has malformed messages.
"""

from sim_replay.faults.kinds import KINDS, Kind
from sim_replay.faults.ledger import Entry, Ledger, Totals, read_report
from sim_replay.faults.plan import FaultPlan, parse_specs

__all__ = ["KINDS", "Entry", "FaultPlan", "Kind", "Ledger", "Totals", "parse_specs", "read_report"]
