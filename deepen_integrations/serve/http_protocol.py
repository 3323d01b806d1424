"""HTTP by httptools, with a bound that it lacks on all that is not a body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LONGEST = 64 * 1024  # as in h11, uvicorn's other implementation, which takes longer for an event than all else here
_FRAME = 16  # bytes that may stand around each piece of a body


class BoundedHttp(HttpToolsProtocol):
    """One connection, closed once a request line, headers, trailers or chunk extensions do not end.

    httptools keeps them in memory, however long they are. What is read together with the beginning of a request does
    not count.
    """

    _beside = 0
    _answering = False

    def data_received(self, data: bytes) -> None:
        """Reads what has arrived."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside <= _LONGEST or self.transport.is_closing():
            return
        if self._answering:
            self.transport.close()
        else:
            self.send_400_response(f"The request line and the headers have more than {_LONGEST} bytes.")

    def on_message_begin(self) -> None:
        """Begins a request."""
        self._beside, self._answering = 0, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begins to answer."""
        self._answering = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body, which has a limit of its own."""
        self._beside = max(0, self._beside - len(body) - _FRAME)
        super().on_body(body)
