"""The growth of the threshold: equations 6 and 7 of Dordoni et al., MLSP 2024."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynkern.ternary import Growth

REGIMES = ("log", "linear", "square", "exp", "fixed")


def test_log_at_points_computed_by_hand() -> None:
    growth = Growth("log", delta0=0.1, m=1.9, cap=0.9)
    assert growth(1) == 0.1
    assert growth(2) == pytest.approx(0.1 + 0.19 * 0.6931471805599453, rel=1e-15)
    assert growth(10) == pytest.approx(0.5374911676688187, rel=1e-15)
    # 0.1 + 0.19 ln 67 = 0.89889, 0.1 + 0.19 ln 68 = 0.90171
    assert growth(67) == pytest.approx(0.8988916, abs=5e-8)
    assert growth(68) == growth(100) == growth(500) == 0.9


def test_uncapped_log_at_epoch_100_is_that_of_figure_1() -> None:
    assert Growth("log", cap=0.99)(100) == pytest.approx(0.97498, abs=5e-6)


def test_the_defaults_are_the_papers() -> None:
    assert Growth() == Growth("log", delta0=0.1, m=1.9, cap=0.9)


@pytest.mark.parametrize(("regime", "first"), [("linear", 500), ("square", 500), ("exp", 50), ("log", 68)])
def test_with_default_m_the_cap_falls_inside_500_epochs(regime: str, first: int) -> None:
    growth = Growth(regime)
    assert growth(first) == pytest.approx(0.9, rel=1e-14)
    assert growth(first - 1) < 0.9 * (1 - 1e-4)


@pytest.mark.parametrize(
    ("regime", "m", "epoch", "delta"),
    [
        ("linear", 0.016, 1, 0.1016),
        ("linear", 0.016, 250, 0.5),
        ("square", 3.2e-5, 250, 0.3),
        ("square", 1.0, 2, 0.5),
        ("exp", 1.0, 1, 0.1 + 0.1 * math.e),
        ("exp", math.exp(-20), 21, 0.1 + 0.1 * math.e),
        ("exp", math.exp(-20), 20, 0.2),
        ("fixed", None, 400, 0.1),
    ],
)
def test_other_regimes_at_points_computed_by_hand(regime: str, m: float | None, epoch: int, delta: float) -> None:
    assert Growth(regime, m=m)(epoch) == pytest.approx(delta, rel=1e-13)


@pytest.mark.parametrize("regime", REGIMES)
def test_f_of_zero_is_zero(regime: str) -> None:
    assert Growth(regime, delta0=0.07)(0) == 0.07


@pytest.mark.parametrize("epoch", [89, 710, 10**6, 10**9])
@pytest.mark.parametrize("m", [1.9, 1e-200, 1e308])
def test_exp_does_not_overflow(epoch: int, m: float) -> None:
    delta = Growth("exp", m=m)(epoch)
    if epoch > 89 or m > 1:
        assert delta == 0.9
    else:
        # 1e-200 e^89 is 4.5e-162, far below the spacing of floats at 0.1.
        assert delta == 0.1


@pytest.mark.parametrize("regime", REGIMES)
def test_no_overflow_at_the_ends_of_the_ranges(regime: str) -> None:
    for delta0 in (0.0, 5e-324, 0.9):
        for m in (0.0, 5e-324, 1.7e308):
            delta = Growth(regime, delta0=delta0, m=m)(10**9)
            assert delta0 <= delta <= 0.9


@given(
    regime=st.sampled_from(REGIMES),
    delta0=st.floats(0, 0.5),
    m=st.floats(0, 1e6),
    cap=st.floats(0.5, 0.999),
    epoch=st.integers(0, 10**6),
)
def test_delta_grows_from_delta0_to_the_cap(regime: str, delta0: float, m: float, cap: float, epoch: int) -> None:
    growth = Growth(regime, delta0, m, cap)
    assert delta0 <= growth(epoch) <= growth(epoch + 1) <= cap < 1


@pytest.mark.parametrize("regime", ["log", "linear", "square", "exp"])
@pytest.mark.parametrize("epoch", [2, 12, 499])
def test_reaching_the_cap_in_a_given_epoch(regime: str, epoch: int) -> None:
    growth = Growth.reaching(regime, epoch, 0.05, 0.8)
    assert growth(epoch) == pytest.approx(0.8, rel=1e-12)
    assert growth(epoch - 1) < 0.8 * (1 - 1e-5)


def test_the_papers_log_reaches_its_cap_between_67_and_68() -> None:
    assert Growth.reaching("log", 68).m < 1.9 < Growth.reaching("log", 67).m


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fixed", 5), "regime: expected one that grows"),
        (("log", 1), "epoch: expected 2 to"),
        (("exp", 701), "epoch: expected 1 to 700 for 'exp', got 701"),
        (("linear", 0), "epoch: expected 1 to"),
        (("linear", 5, 0), "delta0: expected above 0"),
        (("linear", 5, 0.1, 1.0), "cap: expected 0 <= cap < 1"),
    ],
)
def test_what_cannot_be_reached_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Growth.reaching(*arguments)


def test_table() -> None:
    growth = Growth("linear")
    assert growth.table(3) == [growth(1), growth(2), growth(3)]
    assert growth.table(0) == []
    assert len(Growth("log").table(500)) == 500


def test_numpy_numbers_are_taken() -> None:
    assert Growth("log", np.float64(0.1), np.float32(2), 0.9)(np.int64(1)) == 0.1


@pytest.mark.parametrize("cap", [1, 1.0, 1.5, -0.1, math.nan, math.inf])
def test_a_cap_of_one_or_more_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="cap: expected 0 <= cap < 1"):
        Growth("log", cap=cap)


@pytest.mark.parametrize("delta0", [-0.1, 0.91, math.nan])
def test_delta0_out_of_range_is_refused(delta0: float) -> None:
    with pytest.raises(ValueError, match="delta0: expected 0 <= delta0 <= cap"):
        Growth("log", delta0=delta0)


@pytest.mark.parametrize("m", [-1, math.nan, math.inf])
def test_m_out_of_range_is_refused(m: float) -> None:
    with pytest.raises(ValueError, match="m: expected a finite number of at least 0"):
        Growth("log", m=m)


@pytest.mark.parametrize("name", ["delta0", "m", "cap"])
@pytest.mark.parametrize("value", ["0.5", True, [0.5]])
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected a number"):
        Growth("log", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("regime", ["cubic", "", None])
def test_an_unknown_regime_is_refused(regime: str) -> None:
    with pytest.raises(ValueError, match="regime: expected one of"):
        Growth(regime)


@pytest.mark.parametrize("epoch", [-1, 10**9 + 1])
def test_an_epoch_out_of_range_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch: expected 0 to"):
        Growth()(epoch)
    with pytest.raises(ValueError, match="epochs: expected 0 to"):
        Growth().table(epoch)


@pytest.mark.parametrize("epoch", [1.0, "1", None, True])
def test_an_epoch_that_is_no_integer_is_refused(epoch: int) -> None:
    with pytest.raises(TypeError, match="epoch: expected an integer"):
        Growth()(epoch)
    with pytest.raises(TypeError, match="epochs: expected an integer"):
        Growth().table(epoch)
