"""The estimator's arithmetic, on shapes small enough to check by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import UnsupportedError
from freehold.hardware.chips import find_chip, load_chips
from freehold.hardware.devices import class_of, device_of
from freehold.hardware.estimate import (
    ANY,
    Amount,
    AttentionLayers,
    Device,
    ModelShape,
    check_fit,
    decode,
    devices_needed,
    estimate,
    longest_context,
    prefill,
)

FULL = AttentionLayers("full", 1, kv_elements=100, pair_flops=10, prompt_flops=10, n_kv_heads=4)
DENSE = ModelShape("dense", "Q8_0", 2, {"Q8_0": Amount(1000, 1000)}, {}, Amount(50, 50), (FULL,), 4096, 8, 16)
MIXTURE = replace(DENSE, experts={"Q8_0": Amount(8000, 8000)}, n_experts=8, top_k=2)
PLAIN = Device(
    name="plain",
    memory=20_000.0,
    read_rates={ANY: 1000.0},
    product_rates={ANY: 1e9},
    kv_rate=1000.0,
    attention_rate=1e9,
    overhead=0.25,
    decode_spread=1.5,
    prefill_spread=2.0,
    chunk=4,
)


def test_a_decode_step_reads_weights_and_cache_and_pays_for_its_layers() -> None:
    speed = decode(DENSE, PLAIN, context=10)
    assert speed.seconds == pytest.approx({"weights": 1.0, "KV cache": 2.0, "overhead": 0.5, "link": 0.0})
    assert (speed.rate.low, speed.rate.mid, speed.rate.high) == pytest.approx((1 / 3.5 / 1.5, 1 / 3.5, 1.5 / 3.5))
    assert speed.limit == "KV cache"


def test_arithmetic_bounds_a_large_batch() -> None:
    slow = replace(PLAIN, product_rates={ANY: 4000.0}, attention_rate=1e9)
    assert decode(DENSE, slow, 1, batch=1).seconds["weights"] == 1.0
    assert decode(DENSE, slow, 1, batch=8).seconds["compute"] == pytest.approx(8 * 2000 / 4000)


def test_windows_read_less_but_take_as_much() -> None:
    windowed = replace(DENSE, attention=(replace(FULL, kind="window", window=4),))
    assert windowed.kv_read(100) == DENSE.kv_read(4)
    assert windowed.kv_token_bytes == DENSE.kv_token_bytes == 200


def test_experts_of_a_batch() -> None:
    assert MIXTURE.distinct_experts(1) == pytest.approx(2)
    assert MIXTURE.distinct_experts(2) == pytest.approx(8 * (1 - 0.75**2))
    assert MIXTURE.read(1)["Q8_0"].n_bytes == pytest.approx(1000 + 8000 / 4)
    assert MIXTURE.n_active == 1000 + 2000
    speed = decode(MIXTURE, PLAIN, 0, batch=4)
    assert speed.rate.high > 1.5 * speed.rate.mid  # similar texts share experts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 512))
def test_more_is_never_quicker_and_intervals_are_in_order(context: int, batch: int, n_tokens: int) -> None:
    one, more = decode(MIXTURE, PLAIN, context, batch), decode(MIXTURE, PLAIN, context + 1, batch)
    assert more.rate.mid <= one.rate.mid
    assert one.rate.low <= one.rate.mid <= one.rate.high
    assert decode(MIXTURE, PLAIN, context, batch + 1).rate.mid * (1 + 1e-9) >= one.rate.mid
    speed = prefill(MIXTURE, PLAIN, n_tokens)
    assert speed.rate.mid * sum(speed.seconds.values()) == pytest.approx(n_tokens)


def test_prefill_reads_weights_once_per_chunk() -> None:
    seconds = prefill(DENSE, replace(PLAIN, overhead=0.0), 10).seconds
    assert seconds["weights"] == pytest.approx(3.0)  # chunks of 4, 4 and 2
    assert seconds["attention"] == pytest.approx((4 * 2 + 4 * 6 + 2 * 9) * 10 / 1e9)


def test_fits() -> None:
    roomy = replace(PLAIN, reserve=(100.0, 300.0), usable=(1.0, 0.5))
    assert DENSE.weight_bytes == 1050
    for memory, verdict in ((3200.0, "PASS"), (3099.0, "UNKNOWN"), (1350.0, "UNKNOWN"), (1349.0, "FAIL")):
        fit = check_fit(DENSE, replace(roomy, memory=memory), context=1)
        assert fit.verdict == verdict, memory
        assert fit.need == (1350.0, 1550.0)
    assert check_fit(DENSE, replace(roomy, memory=None), 1).verdict == "UNKNOWN"
    assert check_fit(DENSE, replace(roomy, memory=2300.0), context=1, batch=2).kv_bytes == 400


def test_how_many_it_takes() -> None:
    small = replace(PLAIN, memory=400.0)
    assert devices_needed(DENSE, small, context=1) == 4  # 1050 / 4 and a cache in four parts of 50
    latent = replace(DENSE, attention=(replace(FULL, kind="latent"),))
    assert devices_needed(latent, small, context=1) == 8  # its cache of 200 is on every one
    assert devices_needed(latent, replace(PLAIN, memory=150.0), context=1) is None
    assert longest_context(DENSE, replace(PLAIN, memory=2050.0)) == 5
    assert longest_context(DENSE, replace(PLAIN, memory=1000.0)) == 0


def test_two_devices_share_and_pay_for_it() -> None:
    two = replace(PLAIN, count=2, pair_latency=0.01, link=math.inf)
    seconds = decode(DENSE, two, context=10).seconds
    assert seconds == pytest.approx({"weights": 0.5, "KV cache": 1.0, "overhead": 0.5, "link": 0.04})


def test_an_h20_keeps_decode_and_loses_prefill() -> None:
    shape = replace(DENSE, always={"BF16": Amount(16e9, 8e9)}, n_layers=32, attention=(replace(FULL, pair_flops=1e4),))
    h20, h100 = (estimate(shape, device_of(find_chip(name)), context=2048) for name in ("H20", "H100 SXM5"))
    assert h20.decode.rate.mid > h100.decode.rate.mid
    assert h20.prefill.rate.mid < 0.2 * h100.prefill.rate.mid


def test_every_chip_has_a_device_or_says_what_is_missing() -> None:
    bare = [chip for chip in load_chips().values() if chip.bandwidth is None or not chip.flops.keys() - {"fp4", "int4"}]
    assert 0 < len(bare) < 15
    for chip in load_chips().values():
        if chip in bare:
            with pytest.raises(UnsupportedError, match="not public"):
                device_of(chip)
        else:
            assert device_of(chip).basis == class_of(chip)
