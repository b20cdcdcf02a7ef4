"""Files that are written as a whole or not at all, whatever ends the writing."""

import os
import signal

import pytest

from lgf_kernels.core.files import UNFINISHED, whole_file, write_whole


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, function, error):
    def fail(*_):
        raise error

    path = tmp_path / "new folder" / "file"
    write_whole(path, b"old")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_killed_process_leaves_the_old_file_and_a_name_that_is_known(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    child = os.fork()
    if not child:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, b"new")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {path}
    assert path.read_bytes() == b"old" and UNFINISHED.fullmatch(left.name)


def test_others_may_read_it_as_any_new_file(tmp_path):
    """A file of `tempfile` is its owner's alone."""
    (tmp_path / "plain").write_bytes(b"a")
    write_whole(tmp_path / "whole", b"a")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
