"""Hits on disk.

In: hits with their frames, packed as they came (`HitFolder.offer`). Out: in a folder, HDF5 files that CrystFEL, DIALS
and our own reader read, with the packed images as received; `hits.lst` and a `.geom` beside them. Until they are in a
file, hits are in a journal that outlives a killed run; `recover` and the next run in the folder finish it.
May be imported: what is named here. Imports `streamer`, and of the analyser results, geometry and coordinates.
"""

from analyzer.hits.folder import HitFolder, HitFolderSettings
from analyzer.hits.places import UnusableFolder
from analyzer.hits.recover import Recovery, recover
from analyzer.hits.verify import verify

__all__ = ["HitFolder", "HitFolderSettings", "Recovery", "UnusableFolder", "recover", "verify"]
