"""This machine's rates: measured on matrices of a few rows, so that it takes no time; what they are made into."""

from __future__ import annotations

import math

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
    assert 0 < found.overhead < 1
    device = device_here(detect(), found)
    assert all(device._rate(device.read_rates, name) > 0 for name in FORMATS)
    assert device.read_rates["F16"] == found.read["BF16"]
