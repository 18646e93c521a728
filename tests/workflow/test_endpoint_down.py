"""A caption endpoint that is down for half the photos: what was answered is kept, and the next run asks only the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.captions.stub import Reply, StubServer
from tests.workflow.project import Project
from tests.workflow.table import Scene, configure

from likeness.tables import CAPTIONS, read_rows

pytestmark = pytest.mark.slow

TARGET = "results/robin/captions.parquet"


class FailingServer(StubServer):
    """Answers about so many photos, then about no other until `answers` is raised."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answers = answers
        self.answered: set[str] = set()

    def reply_to(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        uri = body["messages"][0]["content"][-2]["image_url"]["url"]
        with self._lock:
            known = uri in self.answered or len(self.answered) < self.answers
            if known:
                self.answered.add(uri)
        reply = super().reply_to(path, body, headers)
        return reply if known else Reply(status=503)


def test_only_what_is_missing_is_asked_again(project: Project, finished: Path) -> None:
    server = FailingServer(answers=4)
    try:
        captions = f"{{backend: endpoint, url: '{server.url}', model: toy, attempts: 1, concurrency: 1, asks: 1}}"
        configure("captions: {backend: facts}", f"captions: {captions}")(Scene(project, finished))
        down = project.run("--", TARGET)
        assert down.code != 0 and "Traceback" not in down.text
        assert "failed for now" in down.text
        assert {job for job in down.jobs if not job.startswith("write_captions/robin/")} == set()
        assert len(server.answered) == 4
        done_before = sum(work.computed.get("captions", 0) for work in down.work.values() if work)
        asked = len(server.seen)

        server.answers = 99
        up = project.succeed("--", TARGET)
        unfinished = {job for job, work in down.work.items() if work is None} | (
            {"write_captions/robin/0", "write_captions/robin/1"} - down.jobs
        )
        assert up.jobs == {*unfinished, "merge_captions/robin"}
        assert up.computed == {"captions": 4} and len(server.seen) - asked == 4
        assert up.models == {"write_captions": len(unfinished)}
        assert up.reused.get("captions", 0) == 4 - done_before
    finally:
        server.close()
    rows = read_rows(project.folder / TARGET, CAPTIONS)
    assert len(rows) == 8 and {row["caption_by"] for row in rows} == {"endpoint"}
    assert all(row["status"] == "ok" for row in rows)
