"""HTTP by httptools, with a limit on everything but the bodies, which httptools lacks."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LIMIT = 64 * 1024  # bytes, as in h11, uvicorn's other implementation
_FRAME = 16  # bytes that may surround each piece of a body


class BoundedHttpProtocol(HttpToolsProtocol):
    """An HTTP connection, closed when the line, headers, trailers and chunk extensions of a request exceed 64 KiB.

    httptools itself keeps the first three in memory, however long they are, and reads the last without an end. Bytes
    that arrive in the same read as the beginning of a request do not count.
    """

    _outside_body = 0

    def data_received(self, data: bytes) -> None:
        """Parses received bytes."""
        self._outside_body += len(data)
        super().data_received(data)
        if self._outside_body <= _LIMIT or self.transport.is_closing():
            return
        if self.cycle and not self.cycle.response_complete:  # type: ignore[truthy-bool]
            self.transport.close()
        else:
            self.send_400_response(f"The request line and the headers have more than {_LIMIT} bytes.")

    def on_message_begin(self) -> None:
        """Begins a request."""
        self._outside_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body. The application limits bodies."""
        self._outside_body = max(0, self._outside_body - len(body) - _FRAME)
        super().on_body(body)
