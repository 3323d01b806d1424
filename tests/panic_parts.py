"""What pyo3 raises where Rust code panics; its own class cannot be imported."""


class PanicException(BaseException):
    """Not an `Exception`, as the one of pyo3."""


def panics(*_args, **_options):
    """Code that panics."""
    raise PanicException("a bug in Rust")
