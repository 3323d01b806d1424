"""Servers that answer as llama.cpp's and vLLM's do, of a tiny model, and that can fail in every way."""

import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KEY = "sk-model-1"


class Model:
    """A model folder, run whole for each text."""

    def __init__(self, folder, *, name="tiny", padding=0):
        self.name = name
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.size = self.model.config.vocab_size + padding
        self.window = self.model.config.max_position_embeddings
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logprobs(self, ids):
        """Log-probabilities [ids, vocabulary] after each id."""
        with self._lock:
            found = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)
        padding = found.new_full((len(ids), self.size - found.shape[-1]), -30.0)
        return torch.cat([found, padding], -1)

    def encode(self, text):
        """As llama.cpp with `parse_special` off: control tokens in it are plain text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


class Fault:
    """What goes wrong, with which requests for probabilities.

    Args:
        kind: "delay", "trickle", "endless", "cut", "close", "busy", "redirect", "garbage", "shape", "nan", "length",
            "few" or "meet", a wait for another; of llama.cpp alone "rising", "mass", "twice" or "beyond", and of vLLM
            "text".
        at: Numbers of the requests, counted from 1 over all; each text is hit once. Every one from the first of them on
            with `on=True`.
        text: Only with texts that begin with these ids.
        meeting: A barrier at which a request that is to "meet" waits, for at most ten seconds.
    """

    def __init__(self, kind, *, at=(1,), on=False, seconds=1.0, text=(), meeting=None):
        self.kind = kind
        self.at = set(at)
        self.on = on
        self.seconds = seconds
        self.text = list(text)
        self.meeting, self.met = meeting, False
        self._seen = []

    def hits(self, number, ids):
        begins = ids[: len(self.text)] == self.text
        if self.on:
            return begins and number >= min(self.at)
        hits = begins and number in self.at and ids not in self._seen
        self._seen += [ids] * hits
        return hits


class FakeServer(ThreadingHTTPServer):
    """Has a model, and counts what it is asked.

    Attributes:
        fault: See `Fault`; None for none.
        asked: The texts, as ids, of requests for probabilities or for nothing, in order.
        slots: The slot that each of them named.
        held: What each slot holds.
        headers_seen: Those of the last request.
    """

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, api, model, port=0, *, key=None, slots=4, max_logprobs=20, status=None):
        super().__init__(("127.0.0.1", port), {"llama.cpp": LlamaCpp, "vllm": Vllm}[api])
        self.model, self.key, self.slot_count = model, key, slots
        self.max_logprobs, self.status = max_logprobs, status
        self.fault, self.asked, self.slots, self.held = None, [], [], {}
        self.headers_seen = {}
        self.at_once = self.most_at_once = 0
        self._open = set()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request, client_address):
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Clients that are gone are expected."""

    def kill(self):
        """Ends at once, with all connections."""
        self.shutdown()
        for connection in list(self._open):
            with_reset(connection)
        self.server_close()

    def count(self, ids, slot=None):
        """Notes a request; returns the fault that it meets, or None."""
        with self.lock:
            self.asked.append(ids)
            self.slots.append(slot)
            number = len(self.asked)
        return self.fault if self.fault is not None and self.fault.hits(number, ids) else None


def with_reset(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        pass


@contextmanager
def serving(api, model, port=0, **options):
    """Runs a server while the block runs."""
    server = FakeServer(api, model, port, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.kill()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """What both have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body):
        self.server.headers_seen = dict(self.headers)
        if self.server.status is not None and self.path not in self.always:
            return self.reply(self.error(self.server.status, "Loading model"), self.server.status)
        wanted = None if self.server.key is None else f"Bearer {self.server.key}"
        if wanted is not None and self.path not in self.public and self.headers.get("authorization") != wanted:
            return self.reply(self.error(401, "Invalid API Key"), 401)
        found = self.routes.get((self.command, self.path))
        if found is None:
            return self.reply(self.error(404, "File Not Found"), 404)
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            return found(self, body)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def reply(self, value, status=200, fault=None):
        content = json.dumps(value, separators=(",", ":")).encode()
        spoil = None if fault is None else getattr(self, f"_{fault.kind}", None)
        if spoil is not None:
            return spoil(content, fault)
        return self._send(content, status)

    def _send(self, content, status=200, length=None):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def _delay(self, content, fault):
        time.sleep(fault.seconds)
        self._send(content)

    def _meet(self, content, fault):
        fault.meeting.wait(10)
        fault.met = True
        self._send(content)

    def _busy(self, _content, _fault):
        self.reply(self.error(503, "no slot is free"), 503)

    def _close(self, _content, _fault):
        self._hang_up()

    def _garbage(self, _content, _fault):
        self._send(b"<html>504 Gateway Time-out</html>")

    def _nan(self, content, _fault):
        numbers = re.compile(rb'"(logprob|token_id:[0-9]+)":-[0-9.e-]+')
        self._send(numbers.sub(rb'"\1":NaN', content))

    def _redirect(self, _content, _fault):
        self.send_response(307)
        self.send_header("location", f"{self.server.url}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def _cut(self, content, _fault):
        self._send(content[: len(content) // 2], length=len(content))
        self._hang_up()

    def _endless(self, _content, _fault):
        self._send(b"", length=2**40)
        while True:
            self.wfile.write(b" " * 2**16)

    def _trickle(self, content, fault):
        self._send(b"", length=len(content))
        for byte in content:
            self.wfile.write(bytes([byte]))
            time.sleep(fault.seconds)

    def _hang_up(self):
        self.close_connection = True
        with_reset(self.connection)


class LlamaCpp(Handler):
    """As `llama-server` of November 2026 was seen to answer."""

    always, public = ("/health",), ("/health", "/v1/models")

    def error(self, status, message):
        return {"error": {"code": status, "message": message, "type": "invalid_request_error"}}

    def props(self, _):
        model = self.server.model
        params = {"temperature": 0.8, "n_probs": 0}
        self.reply(
            {
                "default_generation_settings": {"params": params, "n_ctx": model.window},
                "total_slots": self.server.slot_count,
                "model_path": f"/models/{model.name}.gguf",
                "chat_template": "",
            }
        )

    def models(self, _):
        model = self.server.model
        parameters = sum(weight.numel() for weight in model.model.parameters())
        meta = {"vocab_type": 2, "n_vocab": model.size, "n_ctx": model.window, "n_params": parameters, "ftype": "F32"}
        data = [{"id": model.name, "object": "model", "owned_by": "llamacpp", "meta": {**meta, "size": 4 * parameters}}]
        self.reply({"object": "list", "data": data})

    def tokenize(self, body):
        assert body["add_special"] is False
        assert body["parse_special"] is False
        self.reply({"tokens": self.server.model.encode(body["content"])})

    def completion(self, body):
        ids, model = body["prompt"], self.server.model
        if not ids or not all(0 <= i < model.size for i in ids):
            return self.reply(self.error(400, "Prompt contains invalid tokens"), 400)
        if len(ids) >= model.window:
            return self.reply(self.error(400, f"request ({len(ids)} tokens) exceeds the available context size"), 400)
        fault = self.server.count(ids, body["id_slot"])
        kind = None if fault is None else fault.kind
        held = self.server.held.get(body["id_slot"], [])
        same = next((n for n, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        self.server.held[body["id_slot"]] = ids
        found = {
            "tokens_evaluated": len(ids) + (kind == "length"),
            "truncated": False,
            "model": model.name,
            "timings/cache_n": min(same, len(ids) - 1),
            "content": "not asked for",
        }
        bias = dict(body.get("logit_bias", []))
        likely = model.logprobs(ids)[-1]
        chosen = max([int(likely.argmax()), *bias], key=lambda i: float(likely[i]) + bias.get(i, 0.0))
        is_whole = "\ufffd" not in model.tokenizer.decode([chosen])  # otherwise it has no probabilities there
        if body["n_probs"] and body["n_predict"] and is_whole:
            values, top = likely.topk(min(body["n_probs"], model.size))
            tokens = [
                {"id": i, "token": "x", "bytes": [120], "logprob": value}
                for i, value in zip(top.tolist(), values.tolist(), strict=True)
            ]
            tokens = self.spoilt(tokens, kind)
            found["completion_probabilities"] = [{**tokens[0], "top_logprobs": tokens}]
        wanted = body.get("response_fields")
        return self.reply({name: found[name] for name in wanted if name in found} if wanted else found, 200, fault)

    def spoilt(self, tokens, kind):
        if kind == "rising":
            return tokens[::-1]
        if kind == "mass":
            return [{**token, "logprob": -0.1} for token in tokens]
        if kind == "twice":
            return [tokens[0], *tokens[:-1]]
        if kind == "beyond":
            return [{**tokens[0], "id": self.server.model.size}, *tokens[1:]]
        if kind == "few":
            return tokens[: len(tokens) // 2]
        if kind == "shape":
            return [{"token": token["token"], "prob": 0.1} for token in tokens]
        return tokens

    routes = {
        ("GET", "/props"): props,
        ("GET", "/v1/models"): models,
        ("POST", "/tokenize"): tokenize,
        ("POST", "/completion"): completion,
    }


class Vllm(Handler):
    """By vllm/entrypoints/openai/completion: what it takes, and how it answers."""

    always, public = (), ("/version", "/health")

    def error(self, status, message):
        return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}

    def version(self, _):
        self.reply({"version": "0.20.2"})

    def models(self, _):
        model = self.server.model
        own = {"id": model.name, "object": "model", "owned_by": "vllm", "root": f"/models/{model.name}", "parent": None}
        lora = {"id": "lora", "object": "model", "owned_by": "vllm", "root": "/lora", "parent": model.name}
        data = [{**own, "created": int(time.time()), "max_model_len": model.window}, {**lora, "max_model_len": None}]
        self.reply({"object": "list", "data": data})

    def tokenize(self, body):
        assert body["add_special_tokens"] is False
        ids = self.server.model.encode(body["prompt"])
        self.reply({"count": len(ids), "max_model_len": self.server.model.window, "tokens": ids})

    def completion(self, body):
        ids, model, server = body["prompt"], self.server.model, self.server
        if body["model"] != model.name:
            return self.reply(self.error(404, f"The model `{body['model']}` does not exist."), 404)
        for kind, name in (("sample", "logprobs"), ("prompt", "prompt_logprobs")):
            if (count := body.get(name) or 0) > server.max_logprobs:
                message = f"Requested {kind} logprobs of {count}, which is greater than max allowed: "
                return self.reply(self.error(400, f"{message}{server.max_logprobs}"), 400)
        if not all(0 <= i < model.size for i in ids):
            return self.reply(self.error(400, f"Token id {max(ids)} is out of vocabulary"), 400)
        if len(ids) + body["max_tokens"] > model.window:
            return self.reply(self.error(400, f"This model's maximum context length is {model.window} tokens."), 400)
        assert body["return_tokens_as_token_ids"] is True
        assert body["temperature"] == 0.0
        fault = server.count(ids)
        kind = None if fault is None else fault.kind
        found = model.logprobs(ids)
        chosen = int(found[-1].argmax())
        choice = {"index": 0, "text": "x", "finish_reason": "length", "token_ids": [chosen], "logprobs": None}
        choice["prompt_token_ids"] = ids if kind != "text" else [*ids[:-1], ids[-1] ^ 1]
        if count := body.get("logprobs"):
            values, top = found[-1].topk(count if kind != "few" else count // 2)
            names = {f"token_id:{chosen}": float(found[-1, chosen])}
            names |= {f"token_id:{i}": value for i, value in zip(top.tolist(), values.tolist(), strict=True)}
            names = {"x" + name: value for name, value in names.items()} if kind == "shape" else names
            choice["logprobs"] = {"tokens": [f"token_id:{chosen}"], "top_logprobs": [names]}
        if body.get("prompt_logprobs"):
            own = found[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
            likely = [{str(i): {"logprob": value, "rank": 1}} for i, value in zip(ids[1:], own, strict=True)]
            choice["prompt_logprobs"] = [None, *likely]
        usage = {"prompt_tokens": len(ids) + (kind == "length"), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        value = {"id": "cmpl-1", "object": "text_completion", "model": model.name, "choices": [choice], "usage": usage}
        return self.reply(value, 200, fault)

    routes = {
        ("GET", "/version"): version,
        ("GET", "/v1/models"): models,
        ("POST", "/tokenize"): tokenize,
        ("POST", "/v1/completions"): completion,
    }
