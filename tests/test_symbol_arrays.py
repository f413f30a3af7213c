"""The arrays of the coder's loops: where compiled code finds their types."""

import pytest

from pipeline import symbol_arrays, symbol_loops


@pytest.mark.parametrize("name", ["Entries", "Knowledge", "Sums"])
def test_compiled_code_of_before_still_finds_its_types(name: str) -> None:
    assert getattr(symbol_loops, name) is getattr(symbol_arrays, name)
