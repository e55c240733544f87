"""Ternary weights with a growing threshold (Dordoni et al., MLSP 2024): training, packing, figures."""

from dynkern.nn.schemes import EC2T, SCHEMES, TTQ, TWN, Binary, Delta, Scheme
from dynkern.ternary.convert import pack, pack_values, ternarize
from dynkern.ternary.growth import Growth
from dynkern.ternary.report import Histogram, LayerReport, Report, histogram, report
from dynkern.ternary.training import Counts, Stats, clamp_, set_epoch, stats

__all__ = [
    "EC2T",
    "SCHEMES",
    "TTQ",
    "TWN",
    "Binary",
    "Counts",
    "Delta",
    "Growth",
    "Histogram",
    "LayerReport",
    "Report",
    "Scheme",
    "Stats",
    "clamp_",
    "histogram",
    "pack",
    "pack_values",
    "report",
    "set_epoch",
    "stats",
    "ternarize",
]
