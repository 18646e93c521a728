"""A chat-completions server on loopback that says what a test tells it to, picture by picture."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = {
    "pose": "standing",
    "clothing": "a red coat",
    "action": "reading",
    "scene": "a park",
    "background": "green trees",
}


@dataclass(frozen=True)
class Reply:
    """One reply: a chat completion saying `says` and ending for the reason `finish`, or `body` as it stands.

    `status` 0 drops the connection.
    """

    says: str | None = None
    status: int = 200
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    finish: str = "stop"

    def text(self) -> str:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.says}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return json.dumps({"choices": [{"message": message, "finish_reason": self.finish}], "usage": usage})


def good(**fields: Any) -> Reply:
    return Reply(json.dumps(GOOD | fields))


class StubServer:
    """`script` holds each picture's replies by data URI, in order, the last one for ever; `seen` is what came in."""

    def __init__(self) -> None:
        self.script: dict[str, Sequence[Reply]] = {}
        self.otherwise: Reply = good()
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.count: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                reply = stub.reply_to(self.path, body, dict(self.headers.items()))
                time.sleep(reply.delay_s)
                with stub._lock:
                    stub.busy -= 1
                if reply.status == 0:
                    self.close_connection = True
                    return
                data = reply.text().encode()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    return  # the client gave up waiting

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reply_to(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        uri = body["messages"][0]["content"][-2]["image_url"]["url"]
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self.seen.append({"path": path, **body})
            self.headers.append(headers)
            self.times[uri].append(time.monotonic())
            replies = self.script.get(uri, [self.otherwise])
            reply = replies[min(self.count[uri], len(replies) - 1)]
            self.count[uri] += 1
        return reply

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
