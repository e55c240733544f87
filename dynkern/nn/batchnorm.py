"""Batch normalisation with statistics and affine parameters of its own for every sub-net."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dynkern.nn.dynamic import DynamicModule, device_of
from dynkern.nn.selection import Key, Selection

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Self = TypeVar("Self", bound="SwitchableBatchNorm")


class SwitchableBatchNorm(DynamicModule):
    """One plain batch norm per sub-net (Yu et al., Slimmable Neural Networks, ICLR 2019, section 3.3).

    ``state_dict`` keys are ``bn.N.weight``, ``bn.N.running_mean``, ..., N being the position of the sub-net among
    ``selection.keys``. In eval mode a sub-net whose statistics were never filled raises ``RuntimeError``.

    Args:
        num_features: the number of channels of each sub-net.
        selection: says which sub-net runs; has the same keys.
        options: as of :class:`torch.nn.BatchNorm2d`: eps, momentum, affine, track_running_stats, device, dtype.

    Raises:
        ValueError: ``num_features`` and ``selection`` do not name the same sub-nets.
    """

    plain_class: ClassVar[type[nn.BatchNorm1d] | type[nn.BatchNorm2d]]
    selection: Selection

    def __init__(self, num_features: Mapping[Key, int], selection: Selection, **options: Any) -> None:
        super().__init__()
        check_keys("num_features", num_features, selection)
        self._hold(selection, [self.plain_class(num_features[key], **options) for key in selection.keys])

    @classmethod
    def around(
        cls: type[Self],
        source: BatchNorm,
        channels: Mapping[Key, Tensor | slice],
        selection: Selection,
        whole: Iterable[Key] = (),
    ) -> Self:
        """The batch norms of a slim network, made from the one of the network it came from.

        Args:
            source: the original. The last sub-net of ``whole`` uses this very module; if there is none it is kept,
                unused, as ``full``.
            channels: for each sub-net, what indexes its channels. The affine parameters start as that slice of the
                original's; the statistics start empty.
            selection: says which sub-net runs.
            whole: sub-nets that are the original network itself, where its statistics hold.
        """
        check_keys("channels", channels, selection)
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        members = [
            copy.deepcopy(source) if key in set(whole) else narrowed(source, channels[key]) for key in selection.keys
        ]
        trusted = [i for i, key in enumerate(selection.keys) if key in set(whole)]
        if trusted:
            members[trusted[-1]] = source
        new._hold(selection, members, trusted)
        if not trusted:
            new.full = source
        new.train(source.training)
        return new

    def _hold(self, selection: Selection, members: list[Any], trusted: Iterable[int] = ()) -> None:
        self.selection = selection
        self.bn = nn.ModuleList(members)
        self._names = {key: str(i) for i, key in enumerate(selection.keys)}
        # Statistics that came with the source network are never doubted, not even those of an untrained network.
        self._trusted = frozenset(map(str, trusted))
        self._filled: set[str] = set()
        self.register_load_state_dict_post_hook(_refresh)
        self.refresh()

    @property
    def original(self) -> BatchNorm | None:
        """The batch norm that :meth:`around` was given."""
        if not self._trusted:
            return getattr(self, "full", None)
        return self.bn[max(map(int, self._trusted))]  # type: ignore[return-value]

    @property
    def whole(self) -> list[Key]:
        """The sub-nets whose statistics came with the original, being the same network."""
        return [key for key, name in self._names.items() if name in self._trusted]

    def member(self, key: Key) -> BatchNorm:
        """The batch norm of sub-net ``key``."""
        return self.bn._modules[self._names[key]]  # type: ignore[return-value]

    def refresh(self) -> None:
        """Look again at which sub-nets have statistics."""
        self._filled = {name for name, bn in self.bn._modules.items() if name in self._trusted or filled(bn)}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape, C being the number of active channels."""
        key = self.selection.active()
        name = self._names[key]
        members: Any = self._modules["bn"]  # not through nn.Module.__getattr__, which is slower
        bn = members._modules[name]
        if name in self._filled:
            return bn(x)
        if not bn.training:
            self._require(name, key)
            return bn(x)
        y = bn(x)
        if bn.track_running_stats:
            self._filled.add(name)
        return y

    def _require(self, name: str, key: Key) -> None:
        # Only reached until statistics are seen, so that the read of a tensor is not repeated at every call.
        if not filled(self.bn._modules[name]):
            raise RuntimeError(
                f"batch norm has no statistics for sub-net {key!r}: run dynkern.calibrate_bn(net, loader), or train it"
            )
        self._filled.add(name)

    def plain(self, key: Key) -> nn.Module:
        """A copy of the sub-net's batch norm."""
        return copy.deepcopy(self.member(key))


class SwitchableBatchNorm1d(SwitchableBatchNorm):
    """:class:`torch.nn.BatchNorm1d` with private statistics and affine parameters per sub-net."""

    plain_class = nn.BatchNorm1d


class SwitchableBatchNorm2d(SwitchableBatchNorm):
    """:class:`torch.nn.BatchNorm2d` with private statistics and affine parameters per sub-net."""

    plain_class = nn.BatchNorm2d


def _refresh(module: nn.Module, _: Any) -> None:
    module.refresh()  # type: ignore[operator]


def check_keys(name: str, given: Mapping[Key, Any], selection: Selection) -> None:
    """Check that ``given`` has exactly one entry per sub-net."""
    if set(given) != set(selection.keys):
        raise ValueError(f"{name}: expected one entry per sub-net {list(selection.keys)}, got {list(given)}")


def filled(bn: Any) -> bool:
    """True unless ``bn`` normalises with running statistics that no batch has updated yet."""
    count = bn.num_batches_tracked if bn.running_mean is not None else None
    return count is None or count.is_meta or bool(count > 0)


def narrowed(source: BatchNorm, channels: Tensor | slice) -> BatchNorm:
    """A batch norm over ``channels`` of ``source``: a copy of their affine parameters, and empty statistics."""
    like = source.weight if source.affine else source.running_mean
    features = torch.arange(source.num_features, device=device_of(source))[channels]
    bn = type(source)(
        len(features),
        source.eps,
        source.momentum,
        source.affine,
        source.track_running_stats,
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
    )
    if source.affine:
        with torch.no_grad():
            for new, old in ((bn.weight, source.weight), (bn.bias, source.bias)):
                new.copy_(old[features])
                new.requires_grad_(old.requires_grad)
    return bn
