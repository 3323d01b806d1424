"""Traces: what each member would have said at each step of an answer, and which of them decided it."""

from deepen_core.tracing.records import Candidate, MemberSummary, TraceStep, Voice
from deepen_core.tracing.trace import Trace

__all__ = ["Candidate", "MemberSummary", "Trace", "TraceStep", "Voice"]
