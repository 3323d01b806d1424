"""Scores a given continuation: its ids, and its log-probabilities under the ensemble and each member."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import torch

from deepen_core.chat.messages import check_unicode
from deepen_core.config import SamplingParams
from deepen_core.engine.engine import Engine
from deepen_core.engine.member_runner import PREFILL_CHUNK
from deepen_core.errors import ClosedError, ContextWindowError, MemberError, PromptError, brief
from deepen_core.members.base import Member
from deepen_core.members.memory import is_memory
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.results import MemberScore, Score
from deepen_core.tokenization.vocabulary import Vocabulary


def score(engine: Engine, prompt: str, continuation: str) -> Score:
    """Scores a given continuation, see `Ensemble.score`; other requests continue to decode meanwhile.

    Args:
        engine: The engine.
        prompt: The text before the continuation.
        continuation: The text to score.

    Raises:
        PromptError: If the continuation is empty.
        ContextWindowError: If the two together are longer than a member's window.
        MemberError: If a member fails.
    """
    counted, main, worker, decoder = engine.members_counted, engine.main_member, engine.worker, engine.decoder
    check_texts(prompt, continuation, counted)
    ids = continuation_ids(main.tokenizer, prompt, continuation)
    sequence = decoder.start(prompt, SamplingParams())
    logprobs: list[float] = []
    try:
        # In small pieces, between which the worker decodes other requests.
        while worker.call(partial(decoder.prefill, sequence, PREFILL_CHUNK)).result():
            pass
        for token_id in ids:
            logprobs += worker.call(partial(decoder.force, sequence, [token_id])).result()
        whole = prompt + continuation
        tasks = [partial(member_score, m, prompt, whole, is_main=m is main) for m in counted]
        scores = [worker.call(task).result() for task in tasks]
    finally:
        with contextlib.suppress(ClosedError):  # then the caches are gone already
            worker.call(sequence.release)
    return Score(ids, logprobs, len(continuation.encode()), scores)


def check_texts(prompt: object, continuation: object, members: Sequence[Member]) -> None:
    """Checks the texts to be scored.

    Raises:
        PromptError: If one is not a text, or the continuation is empty.
        ContextWindowError: If the two together are longer than a member's window.
    """
    wrong = [type(text).__name__ for text in (prompt, continuation) if not isinstance(text, str)]
    if wrong:
        raise PromptError(f"score takes two texts, not {' and '.join(wrong)}.")
    assert isinstance(prompt, str)
    assert isinstance(continuation, str)
    if not continuation:
        raise PromptError("The continuation is empty: there is nothing to score.")
    check_unicode(prompt, "The prompt")
    check_unicode(continuation, "The continuation")
    for member in members:
        start = member.tokenizer.reader.read_text(prompt + continuation)
        needed = len(start.ids) + len(member.tokenizer.encode(prompt + continuation))
        if needed > member.context_window:
            raise ContextWindowError(
                f"Prompt and continuation have {needed} tokens for member {member.name!r}, whose context window is "
                f"{member.context_window}: shorten them by at least {needed - member.context_window} tokens."
            )


def continuation_ids(tokenizer: MemberTokenizer, prompt: str, continuation: str) -> list[int]:
    """Returns main's ids of a continuation, such that they follow the prompt's own ids.

    If the prompt's ids are the beginning of the whole text's, they are the remaining ones. If a token spans the two
    texts, the continuation is encoded on its own.

    Raises:
        PromptError: If the tokenizer drops the whole continuation.
    """
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + continuation)
    ids = whole[len(before) :] if whole[: len(before)] == before else _on_its_own(tokenizer, continuation)
    if not ids:
        raise PromptError(f"The main member's tokenizer has no tokens for {continuation!r} after this prompt.")
    return ids


def _on_its_own(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """Returns ids that spell a text exactly, as the tokenizer encodes it after some other character."""
    for ids in tokenizer.backend.encode_behind(text):
        if tokenizer.vocabulary.join(ids) == text.encode():
            return ids
    return _longest_match(tokenizer.vocabulary, text.encode())


def _longest_match(vocabulary: Vocabulary, data: bytes) -> list[int]:
    """Returns ids that spell some bytes, the longest token first; bytes that no token begins with are left out."""
    longest = max(map(len, vocabulary.tokens), default=0)
    ids, place = [], 0
    while place < len(data):
        lengths = range(min(longest, len(data) - place), 0, -1)
        length = next((n for n in lengths if data[place : place + n] in vocabulary.tokens), 0)
        if length:
            ids.append(vocabulary.tokens[data[place : place + length]])
        place += length or 1
    return ids


@torch.inference_mode()
def member_score(member: Member, prompt: str, whole: str, *, is_main: bool) -> MemberScore:
    """Returns one member's own log-probabilities of the text after the prompt, from the first id that differs.

    Args:
        member: The member.
        prompt: The text before the continuation.
        whole: The prompt and the continuation.
        is_main: Whether it is the main member, which is always scored.

    Raises:
        PromptError: If the very first id differs and the member has no BOS token to condition it on.
        MemberError: If the member fails.
    """
    start = member.tokenizer.reader.read_text(prompt).ids
    before, ids = start + member.tokenizer.encode(prompt), start + member.tokenizer.encode(whole)
    same = 0
    while same < min(len(before), len(ids)) and before[same] == ids[same]:
        same += 1
    if same == 0:
        bos = member.tokenizer.vocabulary.bos_id
        if bos is None:
            raise PromptError(
                f"Member {member.name!r} has no BOS token, and its first token spans prompt and continuation: give a "
                "longer prompt."
            )
        ids, same = [bos, *ids], 1
    try:
        logprobs = member.token_logprobs(ids, same)
    except Exception as problem:
        advice = " Shorten the texts." if is_memory(problem) else ""
        if not is_main:
            advice += " With weight 0 it is not scored, and the others are."
        raise MemberError(
            f"Member {member.name!r} failed to score {len(ids)} tokens: {brief(problem)}.{advice}"
        ) from problem
    return MemberScore(member.name, ids[same:], logprobs)
