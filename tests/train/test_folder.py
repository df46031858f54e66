"""Who may write to a run's folder, and what a folder is."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from jaxllm.errors import UserError
from jaxllm.text import TrainConfig, train
from jaxllm.train import TrainState
from jaxllm.train.folder import check_room, only_trainer, run_folder

HOLD = (
    "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); "
    "file.write('process 7 on mars'); file.flush(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of a folder."""
    command = [sys.executable, "-c", HOLD, tmp_path / ".lock"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_trainer_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(UserError, match=r"another training run is writing to .* \(process 7 on mars\); wait"):
        with only_trainer(tmp_path):
            raise AssertionError("both have it")


def test_one_that_was_killed_locks_nobody_out(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").read_text() == "process 7 on mars"  # what it left behind
    for _ in range(2):  # nor does one that ended, or that ended with an error
        with pytest.raises(ZeroDivisionError), only_trainer(tmp_path):
            with pytest.raises(UserError, match=f"process {os.getpid()} on"), only_trainer(tmp_path):
                raise AssertionError("both have it")
            1 / 0  # noqa: B018


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_trainer(tmp_path), only_trainer(tmp_path):
        pass


def test_room_is_asked_for_what_a_checkpoint_holds(tmp_path, monkeypatch):
    """A state of 4 kB, without the frozen arrays beside it."""
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), "int32"), params={"w": jax.ShapeDtypeStruct((1000,), "float32")},
        opt_state=(), key=jax.ShapeDtypeStruct((2,), "uint32"), failed=jax.ShapeDtypeStruct((), "bool"),
        frozen={"base": jax.ShapeDtypeStruct((10**6,), "float32")},
    )  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9000))
    check_room(tmp_path, shapes, copies=2)
    with pytest.raises(UserError, match="3 more checkpoints need 0.00 GB"):
        check_room(tmp_path, shapes, copies=3)


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket"])
def test_an_address_is_refused_before_any_data_is_read(address):
    with pytest.raises(UserError, match=f"'{address}' is an address .* mount it"):
        train(TrainConfig(out=address, data="nowhere.txt"))


def test_no_folder_at_all_is_refused():
    with pytest.raises(UserError, match="out is empty; give the folder"):
        train(TrainConfig(out="", data="nowhere.txt"))


def test_a_folder_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder("~/run") == tmp_path / "run"
    assert str(run_folder("runs/a:b")) == "runs/a:b"
