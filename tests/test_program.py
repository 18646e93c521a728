"""How programs end: one line for what a user can mend, a traceback for what they cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from likeness.errors import TransientError, UserError
from likeness.program import as_about, run


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("config.yaml:3: rank must be positive"), 2, "error: config.yaml:3"),
        (TransientError("the endpoint is down"), 75, "failed for now: the endpoint"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.parquet"), 2, "error: cannot write a.parquet: No space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a.parquet"), 2, "error: cannot write a.parquet: Read-only"),
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(
    error: Exception, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    said = capsys.readouterr().err
    assert end.value.code == code and said.startswith(says) and said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        run(lambda: print(Path("/nowhere/at/all").read_bytes()))


def test_a_log_on_a_full_disk_costs_the_message_not_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stderr", full)

        def main() -> None:
            raise UserError("cannot write")

        with pytest.raises(SystemExit) as end:
            run(main)
        assert end.value.code == 2
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.close()


def test_tables_name_the_packages_of_the_environment_whatever_is_loaded() -> None:
    from importlib.metadata import version

    about = as_about("faces", 3, {"min_score": 0.5}, fingerprint="abc")
    assert about | {"packages": None} == {
        "stage": "faces",
        "version": 3,
        "settings": {"min_score": 0.5},
        "packages": None,
        "fingerprint": "abc",
    }
    assert about["packages"]["torch"] == version("torch") and about["packages"]["pyarrow"] == version("pyarrow")
