"""One member's chat template, and what it can render."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deepen_core.chat.messages import Message
from deepen_core.chat.reasoning import ReasoningSwitch
from deepen_core.chat.template_adapter import THOUGHT_FIELDS, TemplateCapabilities, adapted, is_text, pieces, written
from deepen_core.chat.template_engine import TemplateProgram
from deepen_core.chat.template_probe import TemplateProbe
from deepen_core.chat.template_work import LimitError
from deepen_core.chat.thoughts import Thinking, ThoughtMarks, begun_marks, marks_of
from deepen_core.errors import ChatTemplateError, ChatTemplateLimitError, ModelFilesError, brief

_SYSTEM, _USER, _ASSISTANT = ({"role": role, "content": "a"} for role in ("system", "user", "assistant"))
_ID = "call00001"  # nine letters and digits, as Mistral's templates require
_RESULT = {"role": "tool", "tool_call_id": _ID, "name": "f", "content": "a"}


class ChatTemplate:
    """Renders conversations for one member, adapting what its template cannot render.

    The template's abilities are probed by rendering small conversations. A conversation that the template renders
    completely is rendered as it is.

    Args:
        tokenizer: The member's `transformers` tokenizer.
        template: Its template for plain conversations.
        name: The member's name, for error messages.
        shielded: Returns a copy of a message in which no string can become a control token.
    """

    def __init__(
        self, tokenizer: Any, template: str, name: str, shielded: Callable[[Message], Mapping[str, Any]]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._shielded = shielded

    def render(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any] | None = None,
        check: Callable[[int], None] | None = None,
    ) -> str:
        """Returns the conversation as text, ready for the assistant's answer.

        Args:
            messages: The conversation.
            options: Variables for the template, such as `enable_thinking`; no string of theirs becomes a control token.
            check: Called before rendering with a lower bound of the number of characters; it may raise.

        Raises:
            ChatTemplateError: If the template refuses the messages in every form, does not know a role, or cannot
                render a part that is not text. Its subclass `ChatTemplateLimitError` if the template makes too much or
                takes too long.
            PromptError: If tool calls must become text and their arguments cannot be written as JSON.
        """
        for message in messages:
            self._check_parts(message)
        options = self._shielded(options or {})
        messages = [self._with_known_fields(message) for message in messages]
        turns, strings, whole = self._fitting(messages, options)
        if check is not None and whole:
            # Templates may trim any text, and take thoughts out of what the assistant has said.
            said = [piece for turn in turns if turn["role"] == "user" for piece in pieces(turn)]
            check(sum(len(piece.strip()) for piece in said if isinstance(piece, str)))
        return self._apply([self._shielded(turn) for turn in turns], strings, options)

    @property
    def frame(self) -> str:
        """What the template writes around messages of one letter."""
        chats = ([_USER], [_USER, _ASSISTANT, _USER], [_SYSTEM, _USER])
        return "".join(self._rendering(chat, strings) or "" for chat in chats for strings in (True, False))

    @cached_property
    def marks(self) -> ThoughtMarks | None:
        """The marks of thoughts that the template knows, if it knows any."""
        opening = self._rendering([_USER], self._takes.strings) or ""
        return marks_of(self._template) or begun_marks(opening)

    def thinking(self, options: Mapping[str, Any] | None = None) -> Thinking:
        """Whether an answer begins with thoughts; see `Thoughts.mode`.

        Args:
            options: As for `render`.
        """
        if self.marks is None:
            return "never"
        rendered = self._rendering([_USER], self._takes.strings, self._shielded(options or {})) or ""
        return "opened" if begun_marks(rendered) == self.marks else "optional"

    def may_think(self, options: Mapping[str, Any] | None = None) -> bool:
        """Whether thoughts may come before an answer: not if the template itself begins and ends them.

        Args:
            options: As for `render`.
        """
        if self.marks is None:
            return False
        rendered = self._rendering([_USER], self._takes.strings, self._shielded(options or {})) or ""
        return not rendered.rstrip().endswith(self.marks.end.strip())

    @cached_property
    def switch(self) -> ReasoningSwitch:
        """What turns thoughts on and off."""

        def rendered(variables: Mapping[str, Any]) -> str | None:
            return self._rendering([_USER], self._takes.strings, self._shielded(variables))

        return ReasoningSwitch(self._template, self._name, rendered, thinks=self.marks is not None)

    def _with_known_fields(self, message: Message) -> Message:
        """Returns a message with the role and the field for thoughts that the template knows.

        OpenAI's role for what was the system's is the system's to templates that do not name it. Thoughts are left out
        where the template does not read them.
        """
        if message["role"] == "developer" and "developer" not in self._template:
            message = {**message, "role": "system"}
        if "reasoning_content" not in message:
            return message
        told = {name: value for name, value in message.items() if name != "reasoning_content"}
        thoughts, field = message["reasoning_content"], self._thought_field
        return {**told, field: thoughts} if field and thoughts and message["role"] == "assistant" else told

    @cached_property
    def _thought_field(self) -> str | None:
        """The field of an assistant's message in which the template looks for its thoughts, if it does."""
        marker = "zqthoughtqz"
        arguments: Any = {"a": "a"} if self._takes.mapped_arguments else '{"a": "a"}'

        def is_read(field: str) -> bool:
            said, calling = {**_ASSISTANT, field: marker}, {**_calling(arguments), field: marker}
            # Most templates leave out what was thought before the last question.
            chats = ([_USER, calling, _RESULT], [_USER, said], [_USER, said, _USER])
            return any(marker in (self._rendering(chat, self._takes.strings) or "") for chat in chats)

        return next((field for field in THOUGHT_FIELDS if field in self._template and is_read(field)), None)

    def _fitting(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[Sequence[Message], bool, bool]:
        """Returns the least changed conversation that the template renders completely.

        Returns:
            The messages, whether the template takes their contents as strings, and whether it leaves nothing out.
        """
        partly: list[tuple[Sequence[Message], bool, list[int]]] = []
        for turns, strings in self._attempts(messages):
            lost = self._lost(turns, strings, options)
            if lost == []:
                return turns, strings, True
            if lost is not None:
                partly.append((turns, strings, lost))
        for turns, strings, lost in partly:
            # The template knows these roles, so it leaves messages out by design (only the last one counts, say).
            if all(map(self._knows, {turns[place]["role"] for place in lost})):
                return turns, strings, False
        if partly and partly[0][0] is messages:
            place = partly[0][2][0]
            raise ChatTemplateError(
                f"The chat template of member {self._name!r} leaves out message {place} (role "
                f"{messages[place]['role']!r}): give it one of the roles that the template knows, such as 'user'."
            )
        return messages, True, False  # the template will refuse them with its own message

    def _attempts(self, messages: Sequence[Message]) -> Iterator[tuple[Sequence[Message], bool]]:
        without = [{name: value for name, value in m.items() if name not in THOUGHT_FIELDS} for m in messages]
        as_text = replace(self._takes, tools=False)
        plainest = TemplateCapabilities(self._takes.strings)
        told = (messages,) if without == messages else (messages, without)
        yield from ((turns, True) for turns in told)
        for takes in dict.fromkeys((self._takes, as_text, plainest)):
            yield from ((adapted(turns, takes), takes.strings) for turns in told)

    @cached_property
    def _takes(self) -> TemplateCapabilities:
        strings = self._whole(_USER) or not self._whole(_USER, strings=False)

        def can(*messages: Message) -> bool:
            return self._whole(*messages, strings=strings)

        system, user, assistant = _SYSTEM, _USER, _ASSISTANT
        mapped, as_json = (can(user, _calling(arguments), _RESULT) for arguments in ({"a": "a"}, '{"a": "a"}'))
        repeated = {"user": can(user, user), "assistant": can(user, assistant, assistant, user)}
        empty = {
            "user": can({**user, "content": ""}, assistant, user),
            "assistant": can(user, {**assistant, "content": ""}, user),
        }
        return TemplateCapabilities(
            strings=strings,
            system=can(system, user),
            systems=can(system, system, user),
            late_system=can(user, system) and can(user, assistant, system, user),
            repeated=frozenset(role for role, taken in repeated.items() if taken),
            assistant_first=can(assistant, user),
            empty=frozenset(role for role, taken in empty.items() if taken),
            tools=mapped or as_json,
            mapped_arguments=mapped,
            written_arguments=as_json,
            calls_alone=can(user, {**_calling({"a": "a"} if mapped else '{"a": "a"}'), "content": None}, _RESULT),
        )

    def _knows(self, role: str) -> bool:
        """Whether the template renders a message of a role anywhere."""
        message = {"role": role, "content": "a"}
        chats = ([message], [_USER, message], [message, _USER])
        lost = [self._lost(chat, self._takes.strings) for chat in chats]
        return any(
            places is not None and chat.index(message) not in places for chat, places in zip(chats, lost, strict=True)
        )

    def _check_parts(self, message: Message) -> None:
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            if not is_text(part) and not self._takes_part(part):
                raise ChatTemplateError(
                    f"The chat template of member {self._name!r} cannot render content of type {part.get('type')!r} "
                    f"(in a message of role {message.get('role')!r}): give it as text, or use a model that reads it."
                )

    def _takes_part(self, part: Mapping[str, Any]) -> bool:
        text = {"type": "text", "text": "a"}
        without, with_it = ({"role": "user", "content": content} for content in ([text], [text, part]))
        return self._whole(with_it) and self._rendering([without]) != self._rendering([with_it])

    def _whole(self, *messages: Message, strings: bool = True) -> bool:
        return self._lost(messages, strings) == []

    def _lost(
        self, messages: Sequence[Message], strings: bool, options: Mapping[str, Any] | None = None
    ) -> list[int] | None:
        """Returns the places of messages whose text is left out, or None if the template refuses the messages."""
        skeleton = TemplateProbe(messages)
        rendered = self._rendering(skeleton.messages, strings, options)
        return None if rendered is None else skeleton.lost(rendered)

    def _rendering(
        self, messages: Sequence[Message], strings: bool = True, options: Mapping[str, Any] | None = None
    ) -> str | None:
        try:
            return self._apply(messages, strings, options or {})
        except ChatTemplateLimitError:
            raise
        except ChatTemplateError:  # the answer to this probe
            return None

    def _apply(self, messages: Sequence[Message], strings: bool, options: Mapping[str, Any]) -> str:
        try:
            variables = {**self._tokenizer.special_tokens_map, **options}
            return self._program.render([written(message, strings) for message in messages], variables)
        except LimitError as problem:
            raise ChatTemplateLimitError(
                f"The chat template of member {self._name!r} {problem}, which no conversation of this length needs: "
                "give it another one, as MemberConfig(chat_template=...)."
            ) from problem
        except Exception as problem:  # templates are programs and raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ChatTemplateError(
                f"The chat template of member {self._name!r} refuses these messages (roles: {roles}): {problem}"
            ) from problem

    @cached_property
    def _program(self) -> TemplateProgram:
        return TemplateProgram(self._template)


def _calling(arguments: Mapping[str, Any] | str) -> Message:
    call = {"id": _ID, "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def given_template(given: str) -> str:
    """Returns the text of a `MemberConfig.chat_template`, which may be the path of a file that holds it.

    Raises:
        ModelFilesError: If that cannot be read.
    """
    if "{" in given or "\n" in given:
        return given
    try:
        path = Path(given).expanduser()
        special = path.exists() and not path.is_file()
        text = "" if special else path.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as problem:
        raise ModelFilesError(
            f"The chat template {given!r} cannot be read ({brief(problem)}): give the path of a file, or Jinja."
        ) from problem
    if special:
        raise ModelFilesError(f"The chat template {given!r} is not a regular file: give the path of a file, or Jinja.")
    return text


def default_template(template: Any) -> str | None:
    """Returns the template for plain conversations, given a single template or several by name."""
    if isinstance(template, (list, tuple)):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, Mapping):
        template = template.get("default") or (next(iter(template.values())) if len(template) == 1 else None)
    return None if template is None else str(template)
