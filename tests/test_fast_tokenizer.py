"""Panics of a tokenizer's Rust code become errors of the project."""

from types import SimpleNamespace

import pytest
import tiny
from panic_parts import PanicException, panics

from deepen_core.errors import TokenizerError, is_failure
from deepen_core.tokenization.fast_tokenizer import Backend

USES = {
    "encode": lambda backend: backend.encode("a"),
    "encode a long text": lambda backend: backend.encode("a" * 10_000),
    "encode_inside": lambda backend: backend.encode_inside("a"),
    "encode_behind": lambda backend: list(backend.encode_behind("a")),
    "first_behind": lambda backend: backend.first_behind(["a"], lambda *_: True),
    "token_ends": lambda backend: backend.token_ends("a"),
    "cuts": lambda backend: backend.cuts("a"),
    "normalized": lambda backend: backend.normalized("a"),
}


def broken(error):
    """A backend whose Rust code raises."""

    def fail(*_, **__):
        raise error

    parts = SimpleNamespace(pre_tokenize_str=fail, normalize_str=fail)
    rust = SimpleNamespace(
        encode=fail, encode_batch=fail, encode_batch_fast=fail, pre_tokenizer=parts, normalizer=parts
    )
    backend = Backend(tiny.byte_level())
    backend._first = backend._inside = rust
    return backend


@pytest.mark.parametrize("use", USES)
def test_a_panic_is_an_error_of_ours(use):
    with pytest.raises(TokenizerError, match=r"A tokenizer failed on a text \(PanicException: no entry found for key"):
        USES[use](broken(PanicException("no entry found for key")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_anything_else_is_left_alone(error):
    for use in USES.values():
        with pytest.raises(error):
            use(broken(error("stop")))


def test_only_texts_that_are_read_together_panic():
    backend = Backend(tiny.byte_level())
    backend._first = SimpleNamespace(encode=backend._first.encode, encode_batch=panics)
    with pytest.raises(TokenizerError, match="PanicException: a bug in Rust"):
        backend.first_behind(["a"], lambda *_: True)


def test_a_tokenizer_that_panics_while_it_is_copied(monkeypatch):
    monkeypatch.setattr(Backend, "_build", panics)
    with pytest.raises(TokenizerError, match="PanicException: a bug in Rust"):
        Backend(tiny.byte_level())


def test_what_a_failure_is():
    assert is_failure(PanicException())
    assert is_failure(ValueError())
    assert not is_failure(KeyboardInterrupt())
    assert not is_failure(GeneratorExit())
