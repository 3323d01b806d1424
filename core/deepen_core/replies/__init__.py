"""Answers with more structure than text: tool calls, objects, and thoughts before them.

All members use one syntax, whatever tool format their own chat templates know: distributions can only be fused where
the members are about to generate the same text. It is that of Hermes and Qwen: JSON between `<tool_call>` tags.
"""

from deepen_core.replies.form import ReplyForm
from deepen_core.replies.parser import BrokenCall, Call, CutCall, Part, Reply, ReplyParser, Text, Thought, parse_reply
from deepen_core.replies.react import react_rules
from deepen_core.replies.system_prompt import instructed
from deepen_core.replies.tools import Tool

__all__ = [
    "BrokenCall",
    "Call",
    "CutCall",
    "Part",
    "Reply",
    "ReplyForm",
    "ReplyParser",
    "Text",
    "Thought",
    "Tool",
    "instructed",
    "parse_reply",
    "react_rules",
]
