"""A bounded soak on the loopback: 2,000 requests and more, of every kind, some called off, some malformed."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
from asking import expected, gauge, question, until

REQUESTS, CLIENTS, WARM, SECONDS = 2200, 24, 200, 1500
QUESTIONS, COUNTS, THRESHOLDS = 24, (1, 2, 3, 8, 21, 48), (None, 0.0, 0.4, 1.5)
MALFORMED = (
    b"",
    b"{",
    b"[1, 2",
    b"\xff\xfe",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
)


def rss(process):
    """Resident memory in MiB, of a `psutil.Process` and its children."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


class Client:
    """Sends requests; `seen` maps what was asked to the texts that came back."""

    def __init__(self, url, malformed=()):
        self.malformed = (*MALFORMED, *malformed)
        self.http = httpx2.Client(base_url=url, timeout=300, limits=httpx2.Limits(max_connections=CLIENTS))
        self.seen, self.kinds = {}, dict.fromkeys(("whole", "stream", "aborted", "malformed", "busy"), 0)
        self.lock = threading.Lock()

    def count(self, kind):
        with self.lock:
            self.kinds[kind] += 1

    def one(self, number):
        rng = random.Random(number)
        kind = rng.choices(("whole", "stream", "aborted", "malformed"), (4, 4, 1, 1))[0]
        if kind == "malformed":
            headers = {"Content-Type": "application/json"}
            reply = self.http.post("/v1/chat/completions", content=rng.choice(self.malformed), headers=headers)
            assert reply.status_code == 400, reply.text
            self.count("malformed")
            return
        asked = rng.randrange(QUESTIONS), rng.choice(COUNTS), rng.choice(THRESHOLDS)
        body = {"messages": [{"role": "user", "content": question(asked[0])}], "max_tokens": asked[1], "temperature": 0}
        body |= {} if asked[2] is None else {"confidence_threshold": asked[2]}
        text = self.whole(body) if kind == "whole" else self.stream(body, rng if kind == "aborted" else None)
        if text is not None:
            with self.lock:
                self.seen.setdefault(asked, set()).add(text)
            self.count(kind)

    def whole(self, body):
        reply = self.http.post("/v1/chat/completions", json=body)
        if reply.status_code == 503:
            self.count("busy")
            return None
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert answer["usage"]["completion_tokens"] <= body["max_tokens"]
        return answer["choices"][0]["message"]["content"]

    def stream(self, body, rng):
        """The text; None where `rng` says to go away before the end."""
        body = body | {"stream": True} | ({"max_tokens": 400} if rng else {})
        with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code == 503:
                self.count("busy")
                return None
            assert reply.status_code == 200
            texts, left = [], rng.randrange(6) if rng else None
            for line in reply.iter_lines():
                if left == 0:
                    self.count("aborted")
                    return None
                if line.startswith("data: {"):
                    texts.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
                    left = None if left is None else left - 1
        if rng:  # it ended before
            self.count("aborted")
        return None if rng else "".join(texts)


def soak(url, process, engine, metrics, malformed=(), growth=60):
    """Every finished answer is the local engine's single one; afterwards nothing runs, waits or is kept.

    metrics: prefix of the server's own; growth: MiB that its memory may grow by. Returns how many of each kind.
    """
    client, end = Client(url, malformed), time.monotonic() + SECONDS
    healthy = []

    def go(number):
        if time.monotonic() < end:
            client.one(number)
            if number % 20 == 0:
                healthy.append(client.http.get("/health").status_code)

    def settled():
        waiting = (gauge(client.http, f"num_requests_{kind}", metrics) for kind in ("running", "waiting"))
        return sum(waiting) == 0

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(go, range(WARM)))
        until(settled)
        before = rss(process)
        list(pool.map(go, range(WARM, REQUESTS)))
    until(settled)
    assert time.monotonic() < end
    assert sum(client.kinds.values()) == REQUESTS
    assert all(count for kind, count in client.kinds.items() if kind != "busy"), client.kinds
    assert gauge(client.http, "kv_cache_usage_perc", metrics) == 0
    assert rss(process) < before + growth
    assert set(healthy) == {200}
    for (number, count, threshold), texts in client.seen.items():
        wanted = expected(engine, engine.encode(question(number)), count, threshold)
        # whether half a character at the end is shown is the server's choice
        assert {text.rstrip("\ufffd") for text in texts} == {wanted.text.rstrip("\ufffd")}, (number, count, threshold)
    return client.kinds
