"""Folders that are made once: by one of many, and whole or not at all."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipo.errors import UsageError
from pipo.runtime.cache import build

MAKE = """
import sys, time
from pathlib import Path
from pipo.runtime.cache import build
target, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def make(folder):
    (folder / "first").write_text("there")
    with log.open("a") as file:
        file.write("made\\n")
    time.sleep(seconds)
    (folder / "second").write_text("there")
print(sorted(path.name for path in build(target, make).iterdir()))
"""


def start(target, log, seconds):
    command = [sys.executable, "-c", MAKE, str(target), str(log), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)


def test_the_first_makes_it_and_the_others_wait(tmp_path):
    target, log = tmp_path / "deep" / "target", tmp_path / "log"
    running = [start(target, log, 1.0) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["['first', 'second']\n"] * 3
    assert log.read_text() == "made\n"


def test_a_kill_leaves_no_half(tmp_path):
    target, log = tmp_path / "target", tmp_path / "log"
    killed = start(target, log, 600)
    wait_for(log)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not target.exists()
    after = start(target, log, 0)
    assert after.communicate()[0] == "['first', 'second']\n"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "log", ".target.lock"}


def test_what_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "first").write_text("there")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build(tmp_path / "target", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".target.lock"]


def test_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="PIPO_HOME: cannot write and lock"):
        build(tmp_path / "file" / "target", lambda _: None)
