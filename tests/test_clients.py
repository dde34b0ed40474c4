"""Real clients against a real server that refuses: the batch waits exactly as it was told."""

import contextlib
import http.server
import json
import threading
import urllib.error
import urllib.request
from datetime import timedelta
from email.utils import format_datetime

import pytest

from lockstitch import Limit, ResumableBatch
from lockstitch.testing import fake_clock

# The server


class Provider(http.server.HTTPServer):
    """Answers well, except where it was told to refuse."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.forget()

    def forget(self):
        #: By the number of the request, from 0: (status, headers, body).
        self.refusals = {}
        self.requests = 0

    def refuse(self, number, status, headers=(), body=None):
        self.refusals[number] = status, dict(headers), body or {"error": {"message": "slow down"}}


#: What each service answers when all is well, by the end of its path.
ANSWERS = {
    "/chat/completions": {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "done"},
            }
        ],
    },
    "/messages": {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "done"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
    "/plain": {"answer": "done"},
    ":generateContent": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "done"}]}}]
    },
    "/": {"TableNames": ["done"]},
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        number = self.server.requests
        self.server.requests += 1
        answer = next(body for end, body in ANSWERS.items() if self.path.endswith(end))
        status, headers, body = self.server.refusals.get(number, (200, {}, answer))
        data = json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def running():
    provider = Provider()
    thread = threading.Thread(target=provider.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield provider
    provider.shutdown()
    thread.join()
    provider.server_close()


@pytest.fixture
def provider(running):
    running.forget()

    return running


# The clients: each a context that gives a function of an item, configured not to retry by itself


@contextlib.contextmanager
def with_urllib(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(item):
        try:
            with opener.open(f"{url}/plain", data=str(item).encode()) as response:
                return json.load(response)["answer"]
        except urllib.error.HTTPError as error:
            error.close()
            raise

    yield call


@contextlib.contextmanager
def with_httpx(url):
    httpx = pytest.importorskip("httpx", reason="a client that is tested against")
    with httpx.Client(trust_env=False) as client:

        def call(item):
            return client.post(f"{url}/plain", json=item).raise_for_status().json()["answer"]

        yield call


@contextlib.contextmanager
def with_requests(url):
    requests = pytest.importorskip("requests", reason="a client that is tested against")
    with requests.Session() as session:
        session.trust_env = False

        def call(item):
            response = session.post(f"{url}/plain", json=item)
            response.raise_for_status()
            return response.json()["answer"]

        yield call


@contextlib.contextmanager
def with_aiohttp(url):
    aiohttp = pytest.importorskip("aiohttp", reason="a client that is tested against")
    import asyncio

    async def post(item):
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.post(f"{url}/plain", json=item) as response,
        ):
            return (await response.json())["answer"]

    with asyncio.Runner() as runner:
        yield lambda item: runner.run(post(item))


@contextlib.contextmanager
def with_openai(url):
    openai = pytest.importorskip("openai", reason="a client that is tested against")
    http_client = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=http_client
    ) as client:

        def call(item):
            message = {"role": "user", "content": str(item)}
            answer = client.chat.completions.create(model="m", messages=[message])
            return answer.choices[0].message.content

        yield call


@contextlib.contextmanager
def with_anthropic(url):
    anthropic = pytest.importorskip("anthropic", reason="a client that is tested against")
    http_client = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(
        base_url=url, api_key="none", max_retries=0, http_client=http_client
    ) as client:

        def call(item):
            message = {"role": "user", "content": str(item)}
            answer = client.messages.create(model="m", max_tokens=9, messages=[message])
            return answer.content[0].text

        yield call


@contextlib.contextmanager
def with_botocore(url):
    session = pytest.importorskip("botocore.session", reason="a client that is tested against")
    from botocore.config import Config

    client = session.get_session().create_client(
        "dynamodb",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    try:
        yield lambda _item: client.list_tables()["TableNames"][0]
    finally:
        client.close()


@contextlib.contextmanager
def with_genai(url):
    genai = pytest.importorskip("google.genai", reason="a client that is tested against")
    options = genai.types.HttpOptions(
        base_url=url,
        retry_options=genai.types.HttpRetryOptions(attempts=1),
        client_args={"trust_env": False},
    )
    client = genai.Client(api_key="none", http_options=options)
    try:
        yield lambda item: client.models.generate_content(model="m", contents=str(item)).text
    finally:
        client.close()


CLIENTS = [
    with_urllib,
    with_httpx,
    with_requests,
    with_aiohttp,
    with_openai,
    with_anthropic,
    with_botocore,
    with_genai,
]


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.__name__[5:])
def call(request, running):
    with request.param(running.url) as function:
        yield function


# What services send when they refuse, each with the seconds that it means


def epoch(clock, seconds):
    return str(int(clock.wall()) + seconds)


def moment(clock, seconds):
    return clock.instant + timedelta(seconds=seconds)


REFUSALS = {
    "Retry-After": (429, 30, lambda _: {"Retry-After": "30"}),
    "Retry-After, a float": (429, 1.5, lambda _: {"Retry-After": "1.5"}),
    "Retry-After, a date": (
        429,
        90,
        lambda clock: {"Retry-After": format_datetime(moment(clock, 90), usegmt=True)},
    ),
    "Retry-After, a date without a zone": (
        429,
        90,
        lambda clock: {"Retry-After": f"{moment(clock, 90):%a, %d %b %Y %H:%M:%S}"},
    ),
    "retry-after-ms": (429, 2.5, lambda _: {"retry-after-ms": "2500", "Retry-After": "3"}),
    "x-amz-retry-after": (503, 4.25, lambda _: {"x-amz-retry-after": "4250"}),
    "RateLimit": (429, 40, lambda _: {"RateLimit": '"permin";r=0;t=40, "perhr";r=9;t=900'}),
    "RateLimit, draft 7": (429, 5, lambda _: {"RateLimit": "limit=100, remaining=0, reset=5"}),
    "RateLimit-Reset": (
        429,
        25,
        lambda _: {"RateLimit-Limit": "9", "RateLimit-Remaining": "0", "RateLimit-Reset": "25"},
    ),
    "GitHub": (
        403,
        120,
        lambda clock: {
            "x-ratelimit-limit": "5000",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-used": "5000",
            "x-ratelimit-reset": epoch(clock, 120),
            "x-ratelimit-resource": "core",
        },
    ),
    "GitHub, secondary": (
        403,
        60,
        lambda clock: {
            "Retry-After": "60",
            "x-ratelimit-remaining": "4000",
            "x-ratelimit-reset": epoch(clock, 3000),
        },
    ),
    "OpenAI and Groq": (
        429,
        360,
        lambda _: {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "6m0s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "1h2m3s",
        },
    ),
    "Azure": (
        429,
        17,
        lambda _: {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "17",
            "x-ratelimit-remaining-tokens": "-1",
            "x-ratelimit-reset-tokens": "-1",
        },
    ),
    "Anthropic": (
        429,
        45,
        lambda clock: {
            "anthropic-ratelimit-requests-remaining": "12",
            "anthropic-ratelimit-requests-reset": f"{moment(clock, 400):%Y-%m-%dT%H:%M:%SZ}",
            "anthropic-ratelimit-input-tokens-remaining": "0",
            "anthropic-ratelimit-input-tokens-reset": f"{moment(clock, 45):%Y-%m-%dT%H:%M:%SZ}",
        },
    ),
    "Anthropic, a plan": (
        429,
        300,
        lambda clock: {
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-reset": epoch(clock, 300),
            "anthropic-ratelimit-unified-7d-reset": epoch(clock, 90_000),
        },
    ),
    "Anthropic, overloaded": (529, 7, lambda _: {"Retry-After": "7", "x-should-retry": "true"}),
    "maintenance": (503, 11, lambda _: {"Retry-After": "11"}),
    "a JavaScript date": (
        429,
        50,
        lambda clock: {
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": f"{moment(clock, 3650):%a %b %d %Y %H:%M:%S} GMT+0100 (Somewhere)",
        },
    ),
    "milliseconds since 1970": (
        429,
        50,
        lambda clock: {
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": epoch(clock, 50) + "000",
        },
    ),
    "a reset without a counter": (429, 33, lambda _: {"X-RateLimit-Reset": "33"}),
    "nothing": (429, 60, lambda _: {}),
}


@pytest.mark.parametrize("family", REFUSALS)
def test_a_batch_waits_exactly_as_its_provider_says(tmp_path, provider, call, family):
    """A refusal is a pause of the length told: no item is an error, none is lost, none counts."""
    status, seconds, headers = REFUSALS[family]
    with fake_clock() as clock:
        provider.refuse(1, status, headers(clock))
        with ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
            batch.run(call)
    records = [batch.checkpoint[id] for id in ("0", "1", "2")]

    assert clock.waits == [seconds]
    assert [(each.status, each.result, each.attempt) for each in records] == [("ok", "done", 1)] * 3
    assert (batch.exit_code, batch.summary.errors, batch.summary.waits) == (0, 0, 1)
    assert provider.requests == 4


def test_refusal_after_refusal_is_waited_out(tmp_path, provider, call):
    """An item that is refused again and again still has its first attempt before it."""
    with fake_clock() as clock:
        for number, seconds in enumerate((5, 10, 20)):
            provider.refuse(number, 429, {"Retry-After": str(seconds)})
        with ResumableBatch(tmp_path / "r.jsonl", [1]) as batch:
            batch.run(call)

    assert clock.waits == [5, 10, 20]
    assert (batch.exit_code, batch.checkpoint["1"].attempt) == (0, 1)


def test_a_long_refusal_parks_and_the_next_start_goes_on(tmp_path, provider, call):
    """Five hours are not slept away, and not forgotten: exit code 2, and later the rest."""
    with fake_clock() as clock:
        provider.refuse(1, 429, {"Retry-After": "18000"})
        until = moment(clock, 18_000)
        with ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
            batch.run(call)
        assert (batch.exit_code, batch.summary.ok, batch.summary.pending) == (2, 1, 2)
        assert (batch.summary.resume_at, provider.requests) == (until, 2)
        clock.advance(18_000)
        with ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
            batch.run(call)

    assert clock.waits == []
    assert (batch.exit_code, batch.summary.ok, batch.summary.errors) == (0, 2, 0)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (400, {}),
        (403, {"x-ratelimit-remaining": "60", "x-ratelimit-reset": "30"}),
        (404, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}),
        (429, {"Retry-After": "30", "x-should-retry": "false"}),
        (500, {}),
    ],
)
def test_an_answer_that_is_no_refusal_is_an_error(tmp_path, provider, call, status, headers):
    """What another try would not help is booked at once, and the rest goes on."""
    with fake_clock() as clock:
        provider.refuse(1, status, headers)
        with ResumableBatch(tmp_path / "r.jsonl", range(3)) as batch:
            batch.run(call)

    assert clock.waits == []
    assert [batch.checkpoint[id].status for id in ("0", "1", "2")] == ["ok", "error", "ok"]
    assert (batch.exit_code, provider.requests) == (1, 3)


@pytest.mark.parametrize("code", ["ThrottlingException", "ProvisionedThroughputExceededException"])
def test_aws_says_in_a_code_that_it_throttles(tmp_path, provider, code):
    """AWS throttles with status 400; the code in the body is what counts."""
    with fake_clock() as clock, with_botocore(provider.url) as call:
        provider.refuse(0, 400, body={"__type": f"com.amazonaws#{code}", "message": "Rate"})
        with ResumableBatch(tmp_path / "r.jsonl", [1]) as batch:
            batch.run(call)

    assert clock.waits == [60]
    assert (batch.exit_code, batch.checkpoint["1"].attempt) == (0, 1)


def test_gemini_says_in_the_body_how_long_to_wait(tmp_path, provider):
    """Google sends no Retry-After; what its RetryInfo tells is waited, to the fraction."""
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "53.25s"},
    ]
    body = {"code": 429, "message": "…", "status": "RESOURCE_EXHAUSTED", "details": details}
    with fake_clock() as clock, with_genai(provider.url) as call:
        provider.refuse(0, 429, body={"error": body})
        with ResumableBatch(tmp_path / "r.jsonl", [1]) as batch:
            batch.run(call)

    assert clock.waits == [53.25]
    assert (batch.exit_code, batch.checkpoint["1"].attempt) == (0, 1)


def test_grpc_says_in_the_details_how_long_to_wait():
    """The protobuf messages that Google's gRPC clients attach to their exceptions are read."""
    exceptions = pytest.importorskip("google.api_core.exceptions", reason="a client's exceptions")
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo

    delay = Duration(seconds=53, nanos=500_000_000)
    refused = exceptions.ResourceExhausted(
        "quota", details=[QuotaFailure(), RetryInfo(retry_delay=delay)]
    )

    assert Limit.from_exception(refused) == Limit.after(53.5, reason="RetryInfo")
    assert Limit.from_exception(exceptions.ResourceExhausted("quota")).seconds is None
    assert Limit.from_exception(exceptions.NotFound("gone")) is None
