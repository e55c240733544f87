"""Drop-in modules: the constructor arguments and ``state_dict`` keys of torch.nn, where the thing is the same."""

from dynkern.nn.batchnorm import SwitchableBatchNorm1d, SwitchableBatchNorm2d
from dynkern.nn.channel_pad import ChannelPad
from dynkern.nn.packed import PackedTernaryConv2d, PackedTernaryLinear
from dynkern.nn.selection import Key, Selection, Slice
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear

__all__ = [
    "ChannelPad",
    "Key",
    "PackedTernaryConv2d",
    "PackedTernaryLinear",
    "Selection",
    "Slice",
    "SlicedConv2d",
    "SlicedLinear",
    "SwitchableBatchNorm1d",
    "SwitchableBatchNorm2d",
    "TernaryConv2d",
    "TernaryLinear",
]
