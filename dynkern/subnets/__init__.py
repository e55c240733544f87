"""Sub-nets of one network: dynamic width (Yang & Fan, ASP-DAC 2021)."""

from dynkern.subnets.calibrate import calibrate_bn
from dynkern.subnets.extract import extract
from dynkern.subnets.lasso import GroupLasso
from dynkern.subnets.pruning import Pruning
from dynkern.subnets.reorder import nested, reorder, structure
from dynkern.subnets.slim import revert, slim
from dynkern.subnets.spec import SubNet, read_subnets, write_subnets
from dynkern.subnets.switch import active, keys, made, select, using
from dynkern.subnets.uniform import uniform

__all__ = [
    "GroupLasso",
    "Pruning",
    "SubNet",
    "active",
    "calibrate_bn",
    "extract",
    "keys",
    "made",
    "nested",
    "read_subnets",
    "reorder",
    "revert",
    "select",
    "slim",
    "structure",
    "uniform",
    "using",
    "write_subnets",
]
