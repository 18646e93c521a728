"""The client of OpenAI-compatible servers, against a server on loopback that misbehaves in every known way."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from tests.captions.conftest import stage_of, write_photo
from tests.captions.stub import Reply, StubServer, good

from likeness.captions import endpoint
from likeness.captions.captioner import Answer, Question, Unanswered
from likeness.captions.endpoint import EndpointCaptioner, completions_url, retry_after_s
from likeness.captions.pictures import data_uri
from likeness.errors import TransientError, UserError
from likeness.photos.images import images_of

Photos = Callable[[int], list[dict[str, Any]]]


def client(server: StubServer, tmp_path: Path, **settings: Any) -> EndpointCaptioner:
    chosen = {"url": server.url, "model": "toy", "timeout_s": 5.0} | settings
    return EndpointCaptioner(stage_of(backend="endpoint", **chosen), tmp_path)


def questions(rows: list[dict[str, Any]]) -> list[Question]:
    return [Question(tuple(images_of(row)), "Fill in the form.") for row in rows]


def uri_of(question: Question) -> str:
    return data_uri(question.images[-1], 768)


def test_sends_what_every_server_reads(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    [question] = questions(photos(1))
    [(_, answer)] = client(server, tmp_path, max_new_tokens=99).answers([question])
    assert isinstance(answer, Answer)
    assert (json.loads(answer.text)["pose"], answer.tokens_in, answer.tokens_out) == ("standing", 100, 10)
    [body] = server.seen
    content = body["messages"][0]["content"]
    assert (body["path"], body["model"], body["temperature"], body["max_tokens"]) == (
        "/v1/chat/completions",
        "toy",
        0,
        99,
    )
    assert body["seed"] == 0
    assert body["response_format"] == {"type": "json_object"}
    assert content[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert content[1] == {"type": "text", "text": "Fill in the form."}
    assert "authorization" not in {name.lower() for name in server.headers[0]}


def test_pictures_are_small_and_always_the_same_bytes(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    [question] = questions([write_photo(tmp_path / "large.png", 1, (400, 200))])
    uris = {data_uri(question.images[0], 100) for _ in range(3)}
    assert len(uris) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(uris.pop().partition(",")[2])))
    assert (picture.format, picture.size) == ("JPEG", (100, 50))
    assert not picture.getexif()


@pytest.mark.parametrize(
    "bad",
    [
        *(Reply("", status=status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        Reply(status=0),
        Reply(body="not json"),
        Reply(body="{}"),
        Reply(body='{"choices": []}'),
        Reply(body='{"error": {"code": 500, "message": "overloaded"}}'),
        Reply("late", delay_s=1.0),
    ],
)
def test_failures_of_the_moment_are_tried_again(server: StubServer, tmp_path: Path, photos: Photos, bad: Reply) -> None:
    [question] = questions(photos(1))
    server.script[uri_of(question)] = [bad, good()]
    [(_, answer)] = client(server, tmp_path, timeout_s=0.4).answers([question])
    assert isinstance(answer, Answer)
    assert "standing" in answer.text
    assert len(server.seen) == 2


def test_retry_after_is_waited_for(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    [question] = questions(photos(1))
    server.script[uri_of(question)] = [Reply("", status=429, headers={"retry-after": "1"}), good()]
    assert len(list(client(server, tmp_path).answers([question]))) == 1
    first, second = server.times[uri_of(question)]
    assert 1.0 <= second - first < 3.0


def test_retry_after_reads_numbers_dates_and_nonsense() -> None:
    assert retry_after_s("7") == 7.0
    assert 50 < retry_after_s(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [retry_after_s(header) for header in (None, "", "soon", "-3", formatdate(0, usegmt=True))] == [0.0] * 5
    assert retry_after_s("99999999") == endpoint.LONGEST_RETRY_AFTER_S


def test_out_of_attempts_fails_after_the_others_were_given(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    asked = questions(photos(6))
    server.script[uri_of(asked[0])] = [Reply("", status=503)]
    given: list[tuple[Question, Answer | Unanswered]] = []
    with pytest.raises(TransientError, match="1 of 6 requests failed, the first with: HTTP 503"):
        given.extend(client(server, tmp_path, attempts=3).answers(asked))
    assert {question.images[0].id for question, _ in given} == {question.images[0].id for question in asked[1:]}
    assert server.count[uri_of(asked[0])] == 3


def test_a_server_that_is_down_is_not_asked_for_everything(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    server.otherwise = Reply("", status=503)
    with pytest.raises(TransientError, match=r"not asked|HTTP 503"):
        list(client(server, tmp_path, attempts=2, concurrency=2).answers(questions(photos(30))))
    assert len(server.seen) <= 2 * (endpoint.DOWN_AFTER + 3)


def test_nothing_listens(tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    stage = stage_of(backend="endpoint", url=url, attempts=2)
    with pytest.raises(TransientError, match=re.escape(url) + ".*ConnectError"):
        list(EndpointCaptioner(stage, tmp_path).answers(questions(photos(2))))


def test_other_machines_are_out_of_reach_in_tests(
    tmp_path: Path, photos: Photos, only_loopback: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    stage = stage_of(backend="endpoint", url="http://captions.invalid", attempts=1)
    with pytest.raises(TransientError):
        list(EndpointCaptioner(stage, tmp_path).answers(questions(photos(1))))
    assert only_loopback == ["captions.invalid"] or only_loopback == [b"captions.invalid"]


def test_response_format_is_dropped_for_servers_that_refuse_it(
    server: StubServer, tmp_path: Path, photos: Photos
) -> None:
    asked = questions(photos(3))
    server.script[uri_of(asked[0])] = [Reply(status=400, body="unknown field response_format"), good()]
    assert len(list(client(server, tmp_path, concurrency=1).answers(asked))) == 3
    assert ["response_format" in body for body in server.seen] == [True, False, False, False]


@pytest.mark.parametrize("status", [401, 402, 403, 404, 302])
def test_a_wrong_address_or_key_is_the_users_to_mend(
    server: StubServer, tmp_path: Path, photos: Photos, status: int
) -> None:
    server.otherwise = Reply(status=status, body="no", headers={"location": "http://127.0.0.1:1/"})
    with pytest.raises(UserError, match=f"captions.url: .*HTTP {status}.*api_key_env"):
        list(client(server, tmp_path).answers(questions(photos(2))))
    assert len(server.seen) <= 4


def test_a_rejected_picture_is_said_and_a_rejected_model_fails(
    server: StubServer, tmp_path: Path, photos: Photos
) -> None:
    asked = questions(photos(3))
    server.script[uri_of(asked[1])] = [Reply(status=413, body="too large")]
    answers = dict(client(server, tmp_path).answers(asked))
    refused = answers[asked[1]]
    assert isinstance(refused, Unanswered)
    assert "HTTP 413 too large" in refused.reason
    assert sum(isinstance(answer, Answer) for answer in answers.values()) == 2
    server.otherwise, server.script = Reply(status=400, body="no such model"), {}
    with pytest.raises(UserError, match=r"'toy': p0\d: HTTP 400 no such model"):
        list(client(server, tmp_path).answers(asked))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body='{"choices": [{"message": {"content": null, "refusal": "I will not"}, "finish_reason": "stop"}]}'),
        Reply(body='{"choices": [{"finish_reason": "content_filter"}]}'),
        Reply(body='{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}'),
    ],
)
def test_the_servers_own_refusal_is_final(server: StubServer, tmp_path: Path, photos: Photos, reply: Reply) -> None:
    [question] = questions(photos(1))
    server.script[uri_of(question)] = [reply]
    [(_, answer)] = client(server, tmp_path).answers([question])
    assert isinstance(answer, Answer)
    assert answer.refusal


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400, body='{"error": {"code": "content_filter"}}'),
        Reply(status=400, body='{"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}'),
        Reply(status=403, body='{"error": {"code": 403, "metadata": {"reasons": ["violence"]}}}'),
        Reply(status=422, body='[{"error": {"type": "content_policy_violation"}}]'),
        Reply(body='{"error": {"code": "content_filter"}}'),
    ],
)
def test_a_picture_that_content_rules_forbid_costs_only_itself(
    server: StubServer, tmp_path: Path, photos: Photos, reply: Reply
) -> None:
    asked = questions(photos(2))
    server.script[uri_of(asked[0])] = [reply]
    answers = dict(client(server, tmp_path).answers(asked))
    declined = answers[asked[0]]
    assert isinstance(declined, Unanswered)
    assert declined.reason.startswith("the endpoint declines this picture")
    assert isinstance(answers[asked[1]], Answer)
    assert server.count[uri_of(asked[0])] == 1


def test_words_of_moderation_alone_are_no_refusal(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    [question] = questions(photos(1))
    server.otherwise = Reply(status=403, body="<html>Web filter: access to this site is prohibited.</html>")
    with pytest.raises(UserError, match=r"captions\.url: .*HTTP 403"):
        list(client(server, tmp_path).answers([question]))
    unknown = (
        '{"error": {"message": "Unknown fields: response_format, safety_settings", "code": 400, "flagged": false}}'
    )
    server.script[uri_of(question)] = [Reply(status=400, body=unknown), good()]
    server.count.clear()
    [(_, answer)] = client(server, tmp_path).answers([question])
    assert isinstance(answer, Answer)
    assert ["response_format" in body for body in server.seen[-2:]] == [True, False]


def test_a_failing_disk_loses_no_answer_under_way(
    server: StubServer, tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions(photos(4))
    server.otherwise = Reply(good().says, delay_s=0.3)
    real = endpoint.data_uri

    def first_fails(image: Any, max_side_px: int) -> str:
        if image.id == "p00":
            raise TransientError(f"{image.path}: reading failed (Stale file handle)")
        return real(image, max_side_px)

    monkeypatch.setattr(endpoint, "data_uri", first_fails)
    given: list[tuple[Question, Answer | Unanswered]] = []
    with pytest.raises(TransientError, match=r"1 of 4 requests failed.*Stale file handle"):
        given.extend(client(server, tmp_path).answers(asked))
    assert sorted(question.images[0].id for question, _ in given) == ["p01", "p02", "p03"]


@pytest.mark.parametrize(("finish", "truncated"), [("stop", False), ("length", True)])
def test_an_answer_knows_whether_it_was_cut_off(
    server: StubServer, tmp_path: Path, photos: Photos, finish: str, truncated: bool
) -> None:
    server.otherwise = Reply("", finish=finish)
    [(_, answer)] = client(server, tmp_path).answers(questions(photos(1)))
    assert isinstance(answer, Answer)
    assert answer.truncated is truncated


def test_requests_run_side_by_side_up_to_the_limit(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    server.otherwise = Reply(good().says, delay_s=0.15)
    assert len(list(client(server, tmp_path, concurrency=3).answers(questions(photos(9))))) == 9
    assert server.most_busy == 3


def test_the_key_is_sent_and_said_nowhere(
    server: StubServer,
    tmp_path: Path,
    photos: Photos,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "sk-very-secret-1234"
    monkeypatch.setenv("LIKENESS_TEST_KEY", secret)
    caplog.set_level("DEBUG")
    captioner = client(server, tmp_path, api_key_env="LIKENESS_TEST_KEY", attempts=1)
    assert len(list(captioner.answers(questions(photos(1))))) == 1
    assert {name.lower(): value for name, value in server.headers[0].items()}["authorization"] == f"Bearer {secret}"
    said = []
    for reply in (Reply(status=503, body=f"key {secret} is over quota"), Reply(status=401, body=f"bad {secret}")):
        server.otherwise = reply
        with pytest.raises((TransientError, UserError)) as error:
            list(captioner.answers(questions(photos(1))))
        said.append(f"{error.value} {error.value.__cause__} {error.value.__context__}")
    server.otherwise = Reply(status=400, body=f'{{"error": {{"code": "content_filter", "message": "{secret}"}}}}')
    [(_, answer)] = captioner.answers(questions(photos(1)))
    said += [str(answer), caplog.text, repr(captioner._settings)]
    assert not [text for text in said if secret in text]
    assert "key *** is over quota" in said[0]


def test_an_unset_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIKENESS_TEST_KEY", raising=False)
    stage = stage_of(backend="endpoint", url="http://localhost:1", api_key_env="LIKENESS_TEST_KEY")
    with pytest.raises(UserError, match="environment variable LIKENESS_TEST_KEY is empty or not set"):
        EndpointCaptioner(stage, tmp_path)


def test_a_broken_photo_costs_only_itself(server: StubServer, tmp_path: Path, photos: Photos) -> None:
    rows = photos(2)
    asked = questions(rows)
    Path(rows[0]["path"]).unlink()
    answers = dict(client(server, tmp_path).answers(asked))
    assert isinstance(answers[asked[0]], Unanswered)
    assert isinstance(answers[asked[1]], Answer)


@pytest.mark.parametrize(
    ("url", "posted"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/chat/completions"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai/chat/completions"),
        ("https://host/api", "https://host/api/v1/chat/completions"),
        ("https://host/x/chat/completions", "https://host/x/chat/completions"),
    ],
)
def test_where_requests_go(url: str, posted: str) -> None:
    assert completions_url(url) == posted
