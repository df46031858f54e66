"""Files and folders are whole whoever else writes them, and only what the disk says is told of the disk."""

import errno
import os

import pytest

from jaxllm.atomic import new_file, new_folder, write_file
from jaxllm.errors import UserError


def test_two_who_write_a_file_at_once_do_not_share_what_is_not_whole(tmp_path):
    path = tmp_path / "result.json"
    with new_file(path) as ours:
        ours.write_text("ours")
        with new_file(path) as theirs:  # another thread, or process 1 of another container
            theirs.write_text("theirs")
            assert ours.read_text() == "ours" and not path.exists()
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and os.listdir(tmp_path) == ["result.json"]


def test_what_is_left_is_removed_a_day_after_the_last_write_into_it(tmp_path):
    growing, dead, file = (tmp_path / f".partial-{name}" for name in ("growing", "dead", "file"))
    for folder in (growing, dead):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "ids").write_text("half")
        os.utime(folder, (1, 1))
        os.utime(folder / "inner", (1, 1))
    file.write_text("half")
    for path in (dead / "inner" / "ids", file):
        os.utime(path, (1, 1))
    write_file(tmp_path / "new", b"")
    assert sorted(os.listdir(tmp_path)) == [".partial-growing", "new"]


@pytest.mark.parametrize("new", [new_folder, new_file])
def test_only_errors_of_the_disk_that_is_written_are_told_as_such(tmp_path, new):
    own = lambda partial: os.fspath(partial / "x" if partial.is_dir() else partial)  # noqa: E731
    for make, told in (
        (lambda partial: OSError(errno.ENOSPC, "No space left on device"), True),
        (lambda partial: OSError(errno.EDQUOT, "Disk quota exceeded", own(partial)), True),
        (lambda partial: PermissionError(errno.EACCES, "Permission denied", own(partial)), True),
        (lambda partial: PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in.txt")), False),
        (lambda partial: PermissionError(errno.EPERM, "Operation not permitted"), False),  # of a socket
        (lambda partial: FileNotFoundError(errno.ENOENT, "No such file or directory", "in.txt"), False),
        (lambda partial: TimeoutError("timed out"), False),
    ):
        with pytest.raises(UserError if told else OSError) as raised, new(tmp_path / "final") as partial:
            raise (error := make(partial))
        assert raised.value.__cause__ is error if told else raised.value is error
        assert f"cannot write in the folder '{tmp_path}'" in str(raised.value) or not told
        assert not os.listdir(tmp_path)
