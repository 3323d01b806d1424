"""A short soak: callers in quiet, under attack and beside a hostile process."""

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")
pytest.importorskip("llguidance")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
def test_nobody_gets_a_wrong_answer_or_hangs():
    """Times are left to the benchmark: they depend on what else the machine does."""
    from benchmarks.soak import soak

    rows = soak(1.0)
    assert [(row["wrong"], row["hanging"]) for row in rows] == [(0, 0)] * 3
    assert all(row["requests"] > 100 for row in rows)
    assert rows[1]["beside a fault"]
