"""Names that programs for litert_lm import and that have another name, or another meaning, here."""

import logging
from enum import IntEnum

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.session import Session
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.measure.bench import Benchmark
from gemma_edge.runtime.text.model_info import LiteRtLmModelType

# litert_lm's base classes, for annotations and isinstance: there is one kind of each here.
AbstractBenchmark = Benchmark
AbstractConversation = Conversation
AbstractEngine = Engine
AbstractSession = Session
ModelType = LiteRtLmModelType


class LogSeverity(IntEnum):
    """How much is logged; the values are litert_lm's."""

    VERBOSE = 0
    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4
    FATAL = 5
    SILENT = 1000


_LEVELS = {
    LogSeverity.VERBOSE: logging.NOTSET + 1,
    LogSeverity.DEBUG: logging.DEBUG,
    LogSeverity.INFO: logging.INFO,
    LogSeverity.WARNING: logging.WARNING,
    LogSeverity.ERROR: logging.ERROR,
    LogSeverity.FATAL: logging.CRITICAL,
    LogSeverity.SILENT: logging.CRITICAL + 1,
}


def set_min_log_severity(severity: LogSeverity) -> None:
    """What the logger "gemma_edge" passes on. LiteRT's own lines on stderr are its library's and stay."""
    logging.getLogger("gemma_edge").setLevel(_LEVELS[LogSeverity(severity)])
