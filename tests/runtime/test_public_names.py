"""The package's public names: few, sorted, importable, documented."""

from __future__ import annotations

import pytest

import freehold


def test_names_are_sorted_and_exist() -> None:
    assert freehold.__all__ == sorted(freehold.__all__)
    for name in freehold.__all__:
        assert getattr(freehold, name) is not None
    assert set(freehold.__all__) <= set(dir(freehold))


def test_everything_public_is_documented() -> None:
    for name in set(freehold.__all__) - {"__version__"}:
        value = getattr(freehold, name)
        assert value.__doc__
        for attribute, member in vars(value).items() if isinstance(value, type) else ():
            if callable(member) and not attribute.startswith("_"):
                assert member.__doc__, f"{name}.{attribute}"


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        freehold.nonsense  # noqa: B018
