"""Caption backend: any server that speaks OpenAI's chat completions, asked many questions at once.

Failures of the moment (timeouts, 408, 409, 429, 5xx, a garbled envelope) are tried again with exponential backoff and
jitter, never sooner than the server's Retry-After. A question out of attempts does not stop the others, but several in
a row do: then the server is down. The job fails only after every answer that came was handed on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import tenacity

from likeness.captions.answer import shortened
from likeness.captions.captioner import Answer, Question, Unanswered
from likeness.captions.pictures import data_uri
from likeness.config.captions import CaptionStage
from likeness.errors import TransientError, UserError
from likeness.photos.load import PhotoError

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
FORBIDDING = frozenset({401, 402, 403, 404, 405})
FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 1.0, 60.0, 600.0
DOWN_AFTER = 3
"""So many questions in a row out of attempts mean that the server is down."""
SEED = 0
MODERATION = frozenset(
    {"content_filter", "content_policy_violation", "moderation_blocked", "responsibleaipolicyviolation"}
    | {"data_inspection_failed", "safety_violation"}
)
"""Codes and types by which servers say that their content rules forbid a picture, in small letters."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Retried(Exception):
    """A failure of the moment; `wait_s` is what the server's Retry-After asks for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Rejected(Exception):
    """The server will not take this very request; asking again is in vain."""


class Declined(Exception):
    """The server's content rules forbid this picture; nothing was paid, and other rules may allow it tomorrow."""


class Closed(Exception):
    """The server was found to be down while this question waited."""


class EndpointCaptioner:
    """A client of one server; threads share it."""

    is_model: ClassVar[bool] = True

    def __init__(self, stage: CaptionStage, store_root: Path) -> None:
        self._settings = stage.captions
        self._url = completions_url(stage.captions.url)
        self._key = api_key(stage.captions.api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            timeout=stage.captions.timeout_s,
            headers=headers,
            limits=httpx.Limits(max_connections=stage.captions.concurrency),
            # A proxy or a netrc of the user's is for servers outside of this machine.
            trust_env=httpx.URL(self._url).host not in LOOPBACK,
        )
        self._extras: dict[str, Any] = {"response_format": {"type": "json_object"}, "seed": SEED}
        self._stop = threading.Event()
        self._served = False

    @classmethod
    def fingerprint(cls, stage: CaptionStage, store_root: Path) -> str:
        """The model's name and revision: a server that moved is the same model."""
        model = stage.captions.model
        return f"{model.source}@{model.revision or model.sha256 or ''}"

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Answer | Unanswered]]:
        """Answer as the server does; raises TransientError or UserError once all that was paid for has been given."""
        failures: list[str] = []
        rejections: list[tuple[Question, str]] = []
        fatal: UserError | None = None
        in_a_row = 0
        pool = ThreadPoolExecutor(self._settings.concurrency)
        try:
            futures: dict[Future[Answer], Question] = {pool.submit(self._ask, one): one for one in questions}
            for future in as_completed(futures):
                question = futures[future]
                try:
                    answer = future.result()
                except (PhotoError, Declined) as error:
                    yield question, Unanswered(str(error))
                except TransientError as error:
                    failures.append(str(error))
                except Rejected as error:
                    rejections.append((question, str(error)))
                except Closed:
                    failures.append("not asked, since the server is down")
                except Retried as error:
                    failures.append(str(error))
                    in_a_row += 1
                    if in_a_row >= DOWN_AFTER:
                        self._stop.set()
                except UserError as error:
                    fatal = fatal or error
                    self._stop.set()
                else:
                    in_a_row, self._served = 0, True
                    yield question, answer
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop = threading.Event()
        if fatal:
            raise fatal
        if rejections and not self._served:
            raise UserError(
                f"captions.url: {self._url} rejects requests for model {self._settings.model.source!r}: {rejections[0][1]}. "
                "Check captions.model and whether that model takes pictures."
            )
        for question, reason in rejections:
            yield question, Unanswered(f"the endpoint rejects the request: {reason}")
        if failures:
            raise TransientError(
                f"{self._url}: {len(failures)} of {len(questions)} requests failed, the first with: {failures[0]}. "
                "What was answered is stored; run the same command again and only the missing ones are asked."
            )

    def _ask(self, question: Question) -> Answer:
        """Put one question, again and again as the settings allow."""
        if self._stop.is_set():
            raise Closed
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_uri(image, self._settings.max_side_px)}}
            for image in question.images
        ]
        content.append({"type": "text", "text": question.prompt})
        body = {
            "model": self._settings.model.source,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._settings.max_new_tokens,
        }
        backoff = tenacity.wait_exponential(FIRST_WAIT_S, max=LONGEST_WAIT_S) + tenacity.wait_random(0, FIRST_WAIT_S)

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), error.wait_s if isinstance(error, Retried) else 0.0)

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._settings.attempts),
            wait=wait_s,
            retry=tenacity.retry_if_exception_type(Retried),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        return attempts(self._once, body, question.images[0].id)

    def _once(self, body: dict[str, Any], name: str) -> Answer:
        """Send one request."""
        if self._stop.is_set():
            raise Closed
        extras = self._extras
        response = self._post(body | extras)
        if response.status_code in (400, 422) and extras and not moderated(response):
            # Some servers know neither response_format nor seed; both only ask for what is checked here anyway.
            response = self._post(body)
            if response.is_success:
                self._extras = {}
        if response.is_success:
            return self._read(response)
        said = self._redacted(f"HTTP {response.status_code} {shortened(response.text, 200)}".strip())
        if moderated(response):
            raise Declined(f"the endpoint declines this picture: {said}")
        if response.status_code in RETRIED:
            raise Retried(said, retry_after_s(response.headers.get("retry-after")))
        if response.status_code in FORBIDDING or response.is_redirect:
            raise UserError(
                f"captions.url: {self._url} answers {said}. Check captions.url, captions.model and captions.api_key_env "
                f"({self._settings.api_key_env or 'not set'})."
            )
        raise Rejected(f"{name}: {said}")

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            return self._client.post(self._url, json=body)
        except httpx.RequestError as error:
            words = self._redacted(str(error)) or type(error).__name__
            raise Retried(f"{type(error).__name__}: {words}") from None

    def _read(self, response: httpx.Response) -> Answer:
        """Take the answer out of its envelope; an envelope without choices is a failure of the moment."""
        try:
            envelope = response.json()
            choice = envelope["choices"][0]
            finished = choice.get("finish_reason")
            message = (choice.get("message") or {}) if finished == "content_filter" else choice["message"]
            usage = envelope.get("usage") or {}
            tokens = as_count(usage.get("prompt_tokens")), as_count(usage.get("completion_tokens"))
            text = content_text(message.get("content"))
            refusal = message.get("refusal") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = self._redacted(shortened(response.text, 200))
            if moderated(response):
                raise Declined(f"the endpoint declines this picture: {said}") from None
            raise Retried(f"not a chat completion: {said}") from None
        if finished == "content_filter":
            refusal = refusal or "the endpoint's content filter stopped the answer"
        said = self._redacted(shortened(str(refusal), 200))
        return Answer(text, *tokens, refusal=said, truncated=finished == "length")

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def completions_url(url: str | None) -> str:
    """Where to post: `/v1/chat/completions` below a bare host, `/chat/completions` below a path that is versioned."""
    if not url:
        raise UserError(
            "captions.url: missing; the endpoint backend needs the server's address, such as http://localhost:8000."
        )
    base = url.rstrip("/")
    if base.endswith("/chat/completions"):
        return base
    last = base.rpartition("/")[2]
    versioned = last == "openai" or (last[:1] == "v" and last[1:2].isdigit())
    return f"{base}/chat/completions" if versioned else f"{base}/v1/chat/completions"


def api_key(variable: str | None) -> str:
    """The key from the environment; raises UserError naming the variable, never its value."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"captions.api_key_env: the environment variable {variable} is {'empty or not set' if not key else 'no plain text'}. "
            "Set it to the endpoint's key before the run."
        )
    return key


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks to wait: a number or an HTTP date; 0 where it says nothing."""
    if not header:
        return 0.0
    seconds = 0.0
    with contextlib.suppress(ValueError, TypeError):
        seconds = (
            float(header)
            if header.strip().replace(".", "", 1).isdigit()
            else (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        )
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def moderated(response: httpx.Response) -> bool:
    """Whether a JSON error says by its code, its type or its list of reasons that content rules were broken.

    Its words are not looked at: a web filter's page or a complaint about a setting may hold the same ones.
    """
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return False
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return False
    inner, metadata = (error.get(name) for name in ("innererror", "metadata"))
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    reasons = isinstance(metadata, dict) and isinstance(metadata.get("reasons"), list) and metadata["reasons"]
    return bool(reasons) or any(isinstance(code, str) and code.lower() in MODERATION for code in codes)


def content_text(content: Any) -> str:
    """The text of a message: a string, or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def as_count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
