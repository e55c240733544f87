"""Integers instead of floats: ``run = dk.compile(net, x, int8=dk.quantize.calibrate(net, loader))``."""

from dynkern.aware import aware
from dynkern.engine.ranges import Ranges, calibrate

__all__ = ["Ranges", "aware", "calibrate"]
