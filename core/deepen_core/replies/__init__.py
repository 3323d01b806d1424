"""Answers that are more than a text: calls of tools, objects, and thoughts before them.

One syntax for all members, whatever tools their own chat templates know: the members' distributions can only be joined
where they are about to say the same. It is that of Hermes and Qwen, calls as JSON between `<tool_call>` tags.
"""

from deepen_core.replies.form import ReplyForm
from deepen_core.replies.parser import Call, Part, Reply, ReplyParser, Text, Thought, parse_reply
from deepen_core.replies.system_prompt import instructed
from deepen_core.replies.tools import Tool

__all__ = [
    "Call",
    "Part",
    "Reply",
    "ReplyForm",
    "ReplyParser",
    "Text",
    "Thought",
    "Tool",
    "instructed",
    "parse_reply",
]
