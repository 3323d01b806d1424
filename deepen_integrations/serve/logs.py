"""Log lines of a server: JSON for machines, or one readable line for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Literal

from deepen_core.visible_text import visible

LogFormat = Literal["text", "json"]
_LOGGERS = ("deepen_integrations", "deepen_core", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the facts of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, and the facts of the record as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        facts = getattr(record, "facts", {})
        line = super().format(record)
        return visible(" ".join([line, *(f"{name}={json.dumps(value, default=str)}" for name, value in facts.items())]))


def log_to_stderr(form: LogFormat) -> None:
    """Sends the lines of the server, the engine and uvicorn to stderr.

    Args:
        form: Their format.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
