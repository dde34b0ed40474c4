"""A server on this machine that answers and limits as the big language models do; for llm_batch.py.

It takes OpenAI's and Anthropic's chat requests. Every request is answered the same way each time:
the answer depends on the prompt alone. Two budgets limit it, one by the minute and one by the day,
and what is over a budget gets 429 and the headers of the real thing. Minutes and days are as long
as you say, so that a demonstration need not take any.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LABELS = ("positive", "negative", "neutral")


def label(prompt: str) -> str:
    """Return the answer to a prompt."""
    return LABELS[hashlib.sha256(prompt.encode()).digest()[0] % len(LABELS)]


@dataclass(frozen=True)
class Limits:
    """What the server grants; times in seconds."""

    per_minute: int = 120
    minute: float = 2.0
    #: This budget runs out once; on the next day there is no such limit any more.
    per_day: int = 200
    day: float = 12.0
    #: How long an answer takes.
    latency: float = 0.05


@dataclass(frozen=True)
class Grant:
    """What the budgets say to one request."""

    #: Answers left in this minute, and the seconds until the next one.
    remaining: int
    reset: float
    #: Seconds until it is worth another try; None where the request is granted.
    wait: float | None = None
    reason: str = ""


class Budgets:
    """Counts what is answered, and says when it is too much."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: How often each prompt was answered: what somebody would have paid for.
        self.answers: Counter[str] = Counter()
        #: Requests that got 429, by reason.
        self.refusals: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._minute_ends = -math.inf
        self._in_minute = 0
        self._in_day = 0
        self._day_ends: float | None = None

    def grant(self, prompt: str) -> Grant:
        """Take an answer out of both budgets, or say when there will be one."""
        with self._lock:
            grant = self._grant(time.monotonic())
            if grant.wait is None:
                self.answers[prompt] += 1
            else:
                self.refusals[grant.reason] += 1

        return grant

    def _grant(self, now: float) -> Grant:
        limits = self.limits
        if now >= self._minute_ends:
            self._minute_ends, self._in_minute = now + limits.minute, 0
        remaining, reset = limits.per_minute - self._in_minute, self._minute_ends - now
        if self._in_day >= limits.per_day:
            if self._day_ends is None:
                self._day_ends = now + limits.day
            if now < self._day_ends:
                return Grant(remaining, reset, self._day_ends - now, "requests per day")
        if not remaining:
            return Grant(0, reset, reset, "requests per minute")
        self._in_minute += 1
        self._in_day += 1

        return Grant(remaining - 1, reset)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] # it is what we start
    protocol_version = "HTTP/1.1"  # connections are kept, as the real ones are
    # Head and body in one packet: in two, each answer would wait 40 ms for the ACK of its head.
    wbufsize = -1

    def do_GET(self) -> None:
        """Tell what was answered and refused so far."""
        budgets = self.server.budgets
        self._send(200, {"answers": budgets.answers, "refusals": budgets.refusals}, {})

    def do_POST(self) -> None:
        """Answer a chat request, or refuse it for now."""
        anthropic = self.path.endswith("/messages")
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = request["messages"][-1]["content"]
        grant = self.server.budgets.grant(prompt)
        limit = self.server.budgets.limits.per_minute
        headers = (_anthropic_headers if anthropic else _openai_headers)(grant, limit)
        if grant.wait is None:
            time.sleep(self.server.budgets.limits.latency)
            answer = (_anthropic_answer if anthropic else _openai_answer)(request["model"], prompt)
            self._send(200, answer, headers)
        else:
            message = f"Rate limit reached: {grant.reason}. Try again in {grant.wait:.1f} s."
            kind = "rate_limit_error" if anthropic else "requests"
            error = {"type": kind, "message": message}
            self._send(429, {"type": "error", "error": error}, headers)

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _openai_headers(grant: Grant, limit: int) -> dict[str, str]:
    headers = {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(grant.remaining),
        "x-ratelimit-reset-requests": f"{grant.reset:.3f}s",
    }
    if grant.wait is not None:
        headers["retry-after-ms"] = str(math.ceil(1000 * grant.wait))
        headers["retry-after"] = str(math.ceil(grant.wait))

    return headers


def _anthropic_headers(grant: Grant, limit: int) -> dict[str, str]:
    reset = datetime.now(UTC) + timedelta(seconds=grant.reset)
    headers = {
        "anthropic-ratelimit-requests-limit": str(limit),
        "anthropic-ratelimit-requests-remaining": str(grant.remaining),
        "anthropic-ratelimit-requests-reset": reset.isoformat(timespec="seconds"),
    }
    if grant.wait is not None:
        headers["retry-after"] = str(math.ceil(grant.wait))

    return headers


def _openai_answer(model: str, prompt: str) -> dict[str, Any]:
    tokens = len(prompt.split())
    message = {"role": "assistant", "content": label(prompt)}

    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1},
    }


def _anthropic_answer(model: str, prompt: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": label(prompt)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt.split()), "output_tokens": 1},
    }


class Server(ThreadingHTTPServer):
    """Serves on 127.0.0.1, one thread for each connection."""

    daemon_threads = True
    request_queue_size = 128  # connections that are made at once; of more than 5 some would be lost

    def __init__(self, limits: Limits, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.budgets = Budgets(limits)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone: killed in the middle, perhaps."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(limits: Limits) -> Iterator[str]:
    """Serve in a thread for as long as this is entered; the address is what it yields."""
    with Server(limits) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()
