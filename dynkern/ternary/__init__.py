"""Ternary weights with a growing threshold (Dordoni et al., MLSP 2024): training, packing, figures."""

from dynkern.ternary.convert import pack, ternarize
from dynkern.ternary.growth import Growth
from dynkern.ternary.training import Counts, Stats, clamp_, set_epoch, stats

__all__ = ["Counts", "Growth", "Stats", "clamp_", "pack", "set_epoch", "stats", "ternarize"]
