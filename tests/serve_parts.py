"""A server in a thread, on a port of this machine that is free."""

import threading
import time
from contextlib import contextmanager

import httpx

from deepen_integrations.serve.options import ServeOptions
from deepen_integrations.serve.served import Catalogue
from deepen_integrations.serve.server import listen, server_of

KEY = "sk-test-1"


class RunningServer:
    """Where a server listens, and what it has."""

    def __init__(self, address, server, key):
        self.root = f"http://127.0.0.1:{address[1]}"
        self.url = f"{self.root}/v1"
        self.address = address
        self.server = server
        self.key = key

    def post(self, path, **options):
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.post(f"{self.root}{path}", headers=headers, timeout=60, **options)

    def get(self, path):
        return httpx.get(f"{self.root}{path}", headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def metric(self, name):
        """The value of one of the metrics, with its labels."""
        lines = [line.rpartition(" ") for line in self.get("/metrics").text.splitlines()]
        return next((float(value) for known, _, value in lines if known == name), None)


@contextmanager
def running(models, options=None, sampling=None, *, ready=True):
    """Runs a server of some ensembles while the block runs."""
    options = options or ServeOptions(api_keys=[KEY])
    catalogue = Catalogue(models, sampling)
    server, listening = server_of(catalogue, options), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    found = RunningServer(listening.getsockname(), server, KEY)
    try:
        while not server.started or (ready and not catalogue.ready and catalogue.error is None):
            time.sleep(0.01)
        yield found
    finally:
        server.should_exit = True
        thread.join()


def sequences_held(ensemble):
    """Sequences of an ensemble that wait or are decoded, counted by its worker between two steps."""

    def count():
        scheduler = ensemble._worker._scheduler
        return scheduler.sequences_held + len(scheduler._waiting)

    return ensemble._worker.call(count).result()


def until(condition, seconds=30.0):
    """Waits until a condition holds; returns whether it did in time."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True
