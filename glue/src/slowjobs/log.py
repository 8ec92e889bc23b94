"""Structured log lines for the journal: one line an event, with a stable event name first."""

from __future__ import annotations

import logging
import sys

import structlog

#: sd-daemon's priority prefixes, so that `journalctl -p warning` works.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}


def configure() -> None:
    """Send structlog's events and the standard library's warnings to standard error as logfmt."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _to_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="<4>%(name)s %(message)s")


_logfmt = structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False)


def _to_line(logger: object, method: str, event: structlog.typing.EventDict) -> str:
    level = event.pop("level")
    values = {name: " | ".join(str(value).splitlines()) for name, value in event.items() if value is not None}
    return f"<{_PRIORITIES[level]}>{_logfmt(logger, method, values)}"
