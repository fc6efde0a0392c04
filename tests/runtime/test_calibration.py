"""This machine's rates: measured on matrices of a few rows, so that it takes no time; what they are made into."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest

from freehold import calibration
from freehold.calibration import MEASURED, device_here, measure
from freehold.formats import FORMATS
from freehold.hardware import detect


def test_every_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIDE": 256, "READ_BYTES": 1 << 16, "PROMPT": 64, "GROUP": 16}.items():
        monkeypatch.setattr(calibration, name, value)
    found = measure(1)
    rates = [*found.read.values(), *found.product.values(), *found.grouped.values(), found.kv_rate, found.attention]
    assert set(found.read) == set(found.product) == set(found.grouped) == set(MEASURED)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert 0 <= found.overhead < 1  # a difference of two times, and these are of microseconds
    device = device_here(detect(), found)
    assert all(device._rate(device.read_rates, name) > 0 for name in FORMATS)
    assert device.read_rates["F16"] == found.read["BF16"]


def test_what_times_are_made_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of a small model take 0.5 s, of which reading their bytes, at a chain's rate, is 0.1 s."""
    for name, value in {"SIDE": 256, "READ_BYTES": 1 << 16, "PROMPT": 64, "GROUP": 16}.items():
        monkeypatch.setattr(calibration, name, value)
    small = calibration._SmallLayers(1)
    chain_bytes = calibration._Chain(small.FORMAT, 1).n_bytes

    def typical(runs: Mapping[str, Callable[[], None]], n_rounds: int) -> dict[str, float]:
        return {name: {"small": 0.5, "kv": 0.25}.get(name, 0.1 * chain_bytes / small.n_bytes) for name in runs}

    monkeypatch.setattr(calibration, "_typical", typical)
    found = measure(1)
    assert found.overhead == pytest.approx(0.4 / small.n_layers)
    assert found.read[small.FORMAT] == pytest.approx(small.n_bytes / 0.1)
    assert found.kv_rate == pytest.approx(calibration._Attention(1).kv_bytes / 0.25)
