"""Ask a language model about many reviews, 50 at a time, resumably and within its rate limits.

    python examples/llm_batch.py

This runs as it is: it starts a server of its own that answers and limits like the real ones
(llm_server.py), only that its minute takes two seconds and its day twelve. So you see a pause in
the middle and, with the day's budget used up, the end of the run: it is parked, with exit code 2.
Run the same line again: it goes on when the day is over, and pays for no answer twice. To have
that done for you:

    lockstitch supervise llm_batch.jsonl -- python examples/llm_batch.py

Nothing in this file deals with limits, and the clients are told not to retry by themselves: a
limited response is recognised as such, whichever client it comes from.

Exit codes: 0 all answered; 1 some with errors; 2 limited, run it again later. Ctrl-C waits for the
answers that are on their way, since they are paid for.

With --base-url it asks another server: `--client openai --base-url https://api.openai.com`, with
the key in OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass

import llm_server

from lockstitch import Checkpoint, Record, ResumableBatch, Summary
from lockstitch.cli import Arguments, add_arguments, from_arguments

QUESTION = "Is this review positive, negative or neutral? Answer with one word."


@dataclass(frozen=True)
class Review:
    """What is asked about."""

    id: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What is stored for one review."""

    label: str
    tokens: int


def reviews(count: int) -> list[Review]:
    """Return so many different reviews, 500 at most."""
    parts = ("plot", "acting", "music", "camera", "ending")
    words = ("dull", "superb", "silly", "fine", "moving")
    said = itertools.product(itertools.permutations(parts, 2), itertools.product(words, words))

    return [
        Review(f"review-{number:03}", f"The {a} was {x}, the {b} {y}.")
        for number, ((a, b), (x, y)) in enumerate(itertools.islice(said, count))
    ]


# Clients: each is opened with the server's address and a model, and yields the function that asks.

Ask = Callable[[str], Awaitable[Answer]]
Connection = AbstractAsyncContextManager[Ask]


@asynccontextmanager
async def over_httpx(base_url: str, model: str) -> AsyncIterator[Ask]:
    """Ask by plain HTTP."""
    import httpx  # noqa: PLC0415 - only who uses it needs it

    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:

        async def ask(prompt: str) -> Answer:
            message = {"role": "user", "content": prompt}
            response = await client.post(
                "/v1/chat/completions", json={"model": model, "messages": [message]}
            )
            response.raise_for_status()
            said = response.json()

            return Answer(said["choices"][0]["message"]["content"], said["usage"]["total_tokens"])

        yield ask


@asynccontextmanager
async def over_openai(base_url: str, model: str) -> AsyncIterator[Ask]:
    """Ask with OpenAI's client."""
    import openai  # noqa: PLC0415 - only who uses it needs it

    key = os.environ.get("OPENAI_API_KEY", "none")
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:

        async def ask(prompt: str) -> Answer:
            said = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}]
            )

            return Answer(
                said.choices[0].message.content or "", said.usage.total_tokens if said.usage else 0
            )

        yield ask


@asynccontextmanager
async def over_anthropic(base_url: str, model: str) -> AsyncIterator[Ask]:
    """Ask with Anthropic's client."""
    import anthropic  # noqa: PLC0415 - only who uses it needs it

    key = os.environ.get("ANTHROPIC_API_KEY", "none")
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0) as client:

        async def ask(prompt: str) -> Answer:
            said = await client.messages.create(
                model=model, max_tokens=16, messages=[{"role": "user", "content": prompt}]
            )
            text = "".join(block.text for block in said.content if block.type == "text")

            return Answer(text, said.usage.input_tokens + said.usage.output_tokens)

        yield ask


CLIENTS = {"httpx": over_httpx, "openai": over_openai, "anthropic": over_anthropic}


# The batch


async def classify_all(
    options: Arguments, todo: Sequence[Review], checkpoint: Checkpoint, client: Connection
) -> Summary:
    """Ask about every review that has no answer yet."""
    async with client as ask:

        async def classify(review: Review) -> Answer:
            return await ask(f"{QUESTION}\n\n{review.text}")

        with ResumableBatch(checkpoint, todo, key="id", **options.batch) as batch:
            await batch.arun(classify, **options.run)

    return batch.summary


def print_table(records: Sequence[Record]) -> None:
    """Print how many reviews got which label, and what that has cost."""
    answers = [record.result for record in records if record.status == "ok"]
    print(f"\n{'label':<10}{'reviews':>8}{'tokens':>8}")
    for label in sorted({answer.label for answer in answers}):
        tokens = [answer.tokens for answer in answers if answer.label == label]
        print(f"{label:<10}{len(tokens):>8}{sum(tokens):>8}")
    for record in records:
        if record.error:
            print(f"{record.status:<10}{record.id}  {record.error.summary}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Ask a language model, resumably.")
    parser.add_argument("--client", choices=CLIENTS, default="httpx")
    parser.add_argument("--base-url", metavar="URL", help="default: a server that is started here")
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--reviews", type=int, default=300, metavar="N", help="how many (default: %(default)s)"
    )
    add_arguments(parser, checkpoint="llm_batch.jsonl")
    # The wait is longer than the server's minute and shorter than its day: a pause, a parked end.
    parser.set_defaults(concurrency=50, max_wait=5.0, progress=True)
    server = parser.add_argument_group("the server that is started here; times in seconds")
    server.add_argument("--serve", type=int, metavar="PORT", help="run it alone; 0 is any port")
    for name, value in vars(llm_server.Limits()).items():
        flag = f"--{name.replace('_', '-')}"
        server.add_argument(flag, type=type(value), default=value, help="default: %(default)s")

    return parser


def main() -> int:
    """Run the batch and return its exit code: 0, 1 with errors, 2 with reviews left to do."""
    args = parser().parse_args()
    limits = llm_server.Limits(
        args.per_minute, args.minute, args.per_day, args.day, latency=args.latency
    )
    if args.serve is not None:
        with llm_server.Server(limits, args.serve) as server:
            print(server.url, flush=True)
            server.serve_forever()
    todo = reviews(args.reviews)
    options = from_arguments(args)
    # What changes answers, and so must be the same in every run; the client does not.
    config = {"model": args.model, "question": QUESTION}
    checkpoint = Checkpoint(**options.checkpoint, config=config, result_type=Answer)
    with nullcontext(args.base_url) if args.base_url else llm_server.serving(limits) as base_url:
        client = CLIENTS[args.client](base_url, args.model)
        summary = asyncio.run(classify_all(options, todo, checkpoint, client))
    with Checkpoint(args.checkpoint, result_type=Answer, read_only=True) as stored:
        print_table([record for review in todo if (record := stored.get(review.id))])
    print(f"\n{summary}")

    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main())
