"""Every point of the adapters' checklists has a test that is named after it."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAME = re.compile(r"def (test_point_\d+\w*)|class (TestPoint\d+\w*)")
LEADING = re.compile(r"test_point_((?:\d+_(?:and_)?)+)|TestPoint(\d+)")
ELSEWHERE = {
    "langchain": {41: "the standard suites are tests of LangChain's own: test_langchain_chat_standard.py"},
    "llama_index": {45: "that a missing extra is named is tested for all adapters: test_packaging.py"},
}


def named(adapter):
    """The numbers in the names of the tests of an adapter."""
    numbers = set()
    for file in TESTS.glob(f"test_{adapter}*.py"):
        for found in NAME.finditer(file.read_text(encoding="utf-8")):
            leading = LEADING.match(found[1] or found[2])
            numbers |= {int(number) for number in re.findall(r"\d+", leading[0])}
    return numbers


@pytest.mark.parametrize(("adapter", "points"), [("langchain", 61), ("llama_index", 48)])
def test_every_point_has_a_test(adapter, points):
    numbers = named(adapter)
    assert numbers <= set(range(1, points + 1))
    assert set(range(1, points + 1)) - numbers == set(ELSEWHERE[adapter])
    for reason in ELSEWHERE[adapter].values():
        assert (TESTS / reason.rpartition(" ")[2]).is_file()
