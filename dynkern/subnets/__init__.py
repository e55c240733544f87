"""Sub-nets of one network: dynamic width (Yang & Fan, ASP-DAC 2021)."""

from dynkern.subnets.calibrate import calibrate_bn
from dynkern.subnets.extract import extract
from dynkern.subnets.slim import revert, slim
from dynkern.subnets.spec import SubNet
from dynkern.subnets.switch import active, keys, made, select, using

__all__ = ["SubNet", "active", "calibrate_bn", "extract", "keys", "made", "revert", "select", "slim", "using"]
