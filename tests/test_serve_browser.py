"""The page at `/` in a real browser: it asks, shows who decided, and runs nothing that a model has written."""

import httpx
import pytest
from browser import CHROMIUM, browser
from serve_parts import KEY, RunningServer, running

from deepen_core import Ensemble
from deepen_integrations.serve import ServeOptions

pytestmark = [
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here"),
]
LAST = "document.querySelector('.turn:last-child')"
ANSWERED = f"{LAST} && [...{LAST}.querySelectorAll('h2 small')].every(stats => stats.textContent)"


@pytest.fixture(scope="module")
def tab():
    with browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def open_server(served_demo):
    with running({"demo": served_demo}, ServeOptions()) as server:
        yield server


def opened(tab, server, **size):
    tab.messages.clear()
    tab.size(**{"width": 1280, "height": 800, **size})
    tab.open(f"{server.root}/")
    tab.until("document.querySelectorAll('#who button').length === 3")


def ask(tab, question):
    tab.run(f"(document.getElementById('text').value = {question!r}, document.getElementById('ask').requestSubmit())")
    tab.until(ANSWERED)
    texts = f"[...{LAST}.querySelectorAll('.answer')].map(a => [a.dataset.by, a.querySelector('.text').innerText])"
    return {by: text.replace("■", "").strip() for by, text in tab.run(texts)}


def everybody(tab):
    for place in (1, 2):
        tab.run(f"document.querySelectorAll('#who button')[{place}].click()")


def test_the_ensemble_and_its_members_side_by_side(tab, open_server, served_demo):
    opened(tab, open_server)
    everybody(tab)
    question = "What does Esther work as?"
    message = [{"role": "user", "content": question}]
    expected = {"together": served_demo.generate(message).text.strip()}
    for name in ("atlas-gpt2", "almanac-llama"):
        expected[name] = served_demo.alone(name).generate(message).text.strip()
    assert ask(tab, question) == expected
    assert tab.run(f"{LAST}.querySelector('.answer .t').dataset.by") == "atlas-gpt2"
    tab.run(f"{LAST}.querySelector('.answer .t').focus()")
    card = tab.run("document.getElementById('card').innerText")
    assert "atlas-gpt2 decided" in card
    assert "doctor" in card
    assert "decided 1 of 2 steps" in tab.run(f"{LAST}.innerText")
    assert tab.messages == []


def test_a_second_question_continues_the_conversation_of_each(tab, open_server, served_demo):
    opened(tab, open_server)
    first, second = "Where does Felix live?", "What does Esther work as?"
    answer = ask(tab, first)["together"]
    spoken = [("user", first), ("assistant", " " + answer), ("user", second)]
    known = served_demo.generate([{"role": role, "content": content} for role, content in spoken])
    assert ask(tab, second)["together"] == known.text.strip()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_room_for_all_of_it(tab, open_server, dark):
    opened(tab, open_server, width=360, height=640, phone=True, dark=dark)
    everybody(tab)
    ask(tab, "What does Esther work as?")
    assert tab.run("document.documentElement.scrollWidth") <= 360
    tab.run(f"{LAST}.querySelector('.answer .t').focus()")
    box = tab.run("(b => [b.left, b.top, b.right, b.bottom])(document.getElementById('card').getBoundingClientRect())")
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= 360
    assert box[3] <= 640
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")


def test_the_key_is_asked_for(tab, server):
    tab.messages.clear()
    tab.open(f"{server.root}/")
    tab.until("document.getElementById('login').open")
    tab.run(f"(document.getElementById('secret').value = {KEY!r}, document.querySelector('#login button').click())")
    tab.until("document.querySelectorAll('#who button').length === 3")
    assert ask(tab, "Where does Felix live?")["together"] == "Lisbon"
    assert tab.run("Object.keys(localStorage).length") == 0


def test_what_a_model_says_is_text(tab, open_server):
    opened(tab, open_server)
    hostile = "<img src=x onerror=alert(1)>\u202e\x07<script>alert(2)</script>"
    tab.run(
        "(window.answer = new Answer(''), document.body.append(answer.element),"
        f"answer.add({{delta: {{}}, trace: {{steps: [{step(hostile)}]}}}}), answer.note({hostile!r}),"
        "answer.fail('<b>no</b>'), answer.end(1), details(answer.text.firstChild, answer.steps[0]))"
    )
    assert tab.run("document.querySelectorAll('img, .answer script, .answer b').length") == 0
    shown = tab.run("answer.text.textContent")
    assert shown == hostile.replace("\u202e", "\ufffd").replace("\x07", "\ufffd")
    assert "<script>alert(2)</script>" in tab.run("document.getElementById('card').innerText")


def step(text):
    import json

    top = [[text, 0.5]]
    voice = {"name": text, "status": "spoke", "weight": 1, "probability": 0.5, "heard": top, "own": [], "after": text}
    said = {"text": text, "decision": "main", "by": text, "probability": 0.5, "main_probability": 0.5, "moved": 0}
    return json.dumps({**said, "token_id": 1, "top": top, "members": [voice]})


def test_the_policy_lets_no_other_script_run(tab, open_server):
    opened(tab, open_server)
    tab.run(
        "(s => (s.textContent = 'window.hacked = 1', document.body.append(s)))(document.createElement('script')),"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 2\">')"
    )
    assert tab.run("window.hacked") is None
    assert len(tab.messages) >= 1
    assert tab.run("fetch('https://example.invalid/').then(() => 'sent', () => 'refused')") == "refused"
    policy = httpx.get(f"{open_server.root}/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_stopping_frees_the_sequence(tab, open_server):
    opened(tab, open_server)
    tab.run("(document.getElementById('tokens').value = 5000, document.getElementById('text').value = 'Tell', 0)")
    tab.run("document.getElementById('ask').requestSubmit()")
    tab.run("document.getElementById('ask').requestSubmit()")
    tab.until(ANSWERED)
    tab.until("document.getElementById('send').textContent === 'Send'")


def test_an_error_is_shown(tab, needs_demo):
    with Ensemble.demo() as gone, running({"demo": gone}, ServeOptions()) as server:
        assert isinstance(server, RunningServer)
        opened(tab, server)
        gone.close()
        tab.run("(document.getElementById('text').value = 'x', document.getElementById('ask').requestSubmit())")
        tab.until(f"{LAST} && {LAST}.querySelector('.bad')")
        assert "closed" in tab.run(f"{LAST}.querySelector('.bad').textContent")
