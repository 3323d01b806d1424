"""Requests from threads and event loops: all ways give the same answer, and mistakes are told."""

import asyncio
import threading
import time

import pytest
from scheduler_parts import ENDLESS, OPTIONS, PROMPT, PROMPTS, Serving

from deepen_core.errors import (
    ConfigurationError,
    ContextWindowError,
    PromptError,
    SamplingError,
)


class TestWays(Serving):
    def test_all_ways_give_the_same_answer(self, ensemble):
        expected = ensemble.generate(PROMPT, **OPTIONS)
        assert ensemble.submit(PROMPT, **OPTIONS).result().text == expected.text
        assert "".join(c.text for c in ensemble.submit(PROMPT, **OPTIONS)) == expected.text

        async def ask():
            chunks = [c async for c in ensemble.astream(PROMPT, **OPTIONS)]
            handle = await ensemble.asubmit(PROMPT, **OPTIONS)
            pieces = [c.text async for c in handle]
            both = await ensemble.agenerate([PROMPT, "Once"], **OPTIONS)
            return [
                "".join(c.text for c in chunks),
                chunks[-1].generation.text,
                "".join(pieces),
                (await handle.aresult()).text,
                (await ensemble.agenerate(PROMPT, **OPTIONS)).text,
                both[0].text,
            ]

        assert set(asyncio.run(ask())) == {expected.text}

    def test_one_handle_serves_threads_and_loops(self, ensemble):
        handle = ensemble.submit(PROMPT, **ENDLESS)
        assert not handle.done
        found = []
        threads = [threading.Thread(target=lambda: found.append(handle.result().text)) for _ in range(2)]
        threads += [threading.Thread(target=lambda: found.append(asyncio.run(handle.aresult()).text)) for _ in range(2)]
        for thread in threads:
            thread.start()
        pieces = "".join(chunk.text for chunk in handle)
        for thread in threads:
            thread.join()
        assert handle.done
        assert found == [pieces] * 4
        assert list(handle) == []

    def test_pieces_go_to_whoever_takes_them_first(self, ensemble):
        handle, taken = ensemble.submit(PROMPT, **ENDLESS), []
        threads = [threading.Thread(target=lambda: taken.extend(handle)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(c.token_ids) for c in taken) == ENDLESS["max_new_tokens"]
        assert sum(c.generation is not None for c in taken) == 1

    def test_callers_share_a_batch_within_its_size(self, held):
        ensemble, member = held
        handles = [ensemble.submit(prompt, **OPTIONS) for prompt in PROMPTS]
        member.permits.release(10_000)
        together = [handle.result().token_ids for handle in handles]
        assert max(member.forwards) == 4
        assert together == [ensemble.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS]

    def test_a_slow_reader_holds_nobody_up(self, ensemble):
        """What it has not read is joined to few pieces, and is all there."""
        handle = ensemble.submit(PROMPT, **ENDLESS)
        whole = handle.result()
        chunks = list(handle)
        assert len(chunks) <= 32
        assert "".join(c.text for c in chunks) == whole.text
        assert [i for c in chunks for i in c.token_ids] == whole.token_ids
        assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]

    def test_asking_within_a_stream(self, ensemble):
        expected = ensemble.generate("Once", **OPTIONS).text
        for piece, chunk in enumerate(ensemble.stream(PROMPT, **OPTIONS)):
            assert chunk.text or chunk.finish_reason
            if piece < 3:
                assert ensemble.generate("Once", **OPTIONS).text == expected

    def test_facts_and_scores_while_rows_run(self, held):
        ensemble, member = held
        handle = ensemble.submit(PROMPT, **ENDLESS)
        assert ensemble.count_tokens("Once upon") > 0
        assert ensemble.info.members[0].batching
        assert ensemble.context_window == 256
        member.permits.release(10_000)
        assert next(handle).text
        scored = ensemble.score(PROMPT, " jumps over")
        ensemble.warm_up()
        assert len(handle.result().token_ids) == ENDLESS["max_new_tokens"]
        assert scored.logprobs == pytest.approx(ensemble.score(PROMPT, " jumps over").logprobs, abs=1e-4)

    def test_loops_in_several_threads(self, ensemble):
        expected = {p: ensemble.generate(p, **OPTIONS).text for p in PROMPTS}
        found = []

        async def ask():
            answers = await asyncio.gather(*(ensemble.agenerate(p, **OPTIONS) for p in PROMPTS))
            found.append(dict(zip(PROMPTS, (a.text for a in answers), strict=True)))

        threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 3

    def test_the_event_loop_is_never_held_up(self, held):
        """It ticks on while a step does not come to its end, and its default executor is not touched."""
        ensemble, member = held

        async def ask():
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(ensemble.agenerate(PROMPT, **OPTIONS))
            stream = ensemble.astream("Once", **OPTIONS)
            first = asyncio.ensure_future(anext(stream))
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not task.done()
            assert not first.done()
            member.permits.release(10_000)
            assert (await task).text
            assert (await first).text
            assert loop._default_executor is None
            await stream.aclose()

        asyncio.run(ask())

    def test_reading_a_long_prompt_lets_other_threads_run(self, ensemble):
        text = "The quick brown <|eos|> fox jumps over the lazy dog. " * 8000
        backend = ensemble._engine.members[0].tokenizer.backend
        thread = threading.Thread(target=backend.encode, args=(text,))
        thread.start()
        ticks = 0
        while thread.is_alive():
            time.sleep(0.001)
            ticks += 1
        assert ticks > 5, "the tokenizer kept the interpreter to itself"
        piece = text[:7950]
        assert backend.encode(piece * 2) == backend.encode(piece) * 2


class TestMistakes(Serving):
    @pytest.mark.parametrize(
        ("prompt", "options", "error"),
        [
            (" dog" * 300, {}, ContextWindowError),
            (5, {}, PromptError),
            ([PROMPT, "\ud800"], {}, PromptError),
            (PROMPT, {"max_token": 3}, SamplingError),
            (PROMPT, {"on_member_error": "ignore"}, SamplingError),
        ],
    )
    def test_are_told_by_the_call_itself(self, ensemble, prompt, options, error):
        other = ensemble.submit("Once", **OPTIONS)
        ways = [ensemble.generate, lambda p, **o: asyncio.run(ensemble.agenerate(p, **o))]
        if not isinstance(prompt, list):
            ways += [ensemble.submit, ensemble.stream, lambda p, **o: asyncio.run(ensemble.asubmit(p, **o))]
        for way in ways:
            with pytest.raises(error):
                way(prompt, **options)
        assert len(other.result().token_ids) == 12

    @pytest.mark.parametrize("way", ["stream", "submit", "astream", "asubmit"])
    def test_one_prompt_at_a_time(self, ensemble, way):
        def ask():
            asked = getattr(ensemble, way)(["a", "b"])
            asyncio.run(asked)

        with pytest.raises(PromptError, match=f"{way} takes one prompt"):
            ask()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_batch_size": 0}, "'max_batch_size' is 0: Input should be greater than or equal to 1"),
            ({"max_batch_size": 2.5}, "'max_batch_size' is 2.5"),
            ({"max_batch_size": True}, "'max_batch_size' is True"),
            ({"on_member_error": "ignore"}, "'on_member_error' is 'ignore': Input should be 'raise' or 'drop'"),
        ],
    )
    def test_wrong_ways_to_serve(self, load, options, message):
        with pytest.raises(ConfigurationError, match=message):
            load("alpha", "beta", **options)
