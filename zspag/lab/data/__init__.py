"""Data sets, their splits, and the guard that counts every sample a method reads beyond its forget set.

Invariant: the same source gives the same tensors in the same order, and ``Dataset.sha256`` names them.
"""

from zspag.lab.data.folders import labelled_folder
from zspag.lab.data.guard import Guard
from zspag.lab.data.loading import load
from zspag.lab.data.splits import Dataset, Split, channel_statistics, halved, thinned
from zspag.report.files import data_root

__all__ = [
    "Dataset",
    "Guard",
    "Split",
    "channel_statistics",
    "data_root",
    "halved",
    "labelled_folder",
    "load",
    "thinned",
]
