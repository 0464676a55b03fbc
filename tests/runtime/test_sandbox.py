"""Programs that try to get out of the sandbox, or to take the machine with them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipo.runtime import sandbox
from pipo.runtime.sandbox import KINDS, Limits, Sandbox

SHORT = Limits(seconds=1)


def python_for(kind: str) -> str | None:
    """An interpreter that works in a sandbox of this kind: root's programs may be unable to reach this one."""
    pythons = [sys.executable, *filter(None, [shutil.which("python3", path="/usr/bin")])]
    return next((python for python in pythons if sandbox.works(kind, python)), None)


@pytest.fixture(params=KINDS)
def box(request):
    python = python_for(request.param)
    if python is None:
        pytest.skip(f"{request.param} does not work on this machine")
    return Sandbox(request.param, python)


@pytest.fixture
def run(box):
    """`run(program, *arguments, limits=, stdin=)` -> the outcome; afterwards nothing of the program is alive."""
    marker = f"marker-{uuid.uuid4()}"

    def run(program, *arguments, limits=SHORT, stdin=b""):
        command = ["python", "main.py", *map(str, arguments), marker]
        began = time.monotonic()
        outcome = box.run(command, {"main.py": program.encode()}, stdin, limits)
        assert time.monotonic() - began < 2 * limits.seconds + 2 * sandbox.GRACE
        return outcome

    yield run
    assert alive(marker) == []


def alive(marker: str) -> list[str]:
    """Processes with `marker` in their command line, zombies left out; they get a moment to end."""
    for _ in range(20):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if marker in text:
                found.append(text)
        if not found:
            break
        time.sleep(0.1)
    return found


def test_a_program_reads_and_answers(run):
    outcome = run("import sys; print(sys.argv[1], sys.stdin.read()); print('note', file=sys.stderr)", 7, stdin=b"hello")
    assert outcome.ok and outcome.stdout == b"7 hello\n" and outcome.stderr == b"note\n"


def test_other_files_and_tmp(box):
    program = b"import os, data; open(os.environ['TMPDIR'] + '/x', 'w').write('y'); print(data.value)"
    files = {"main.py": program, "data.py": b"value = 5"}
    assert box.run(["python", "-c", "exec(open('main.py').read())"], files).ok is False  # -I: no folder of its own
    program = b"import sys; sys.path.insert(0, '.')\n" + program
    assert box.run(["python", "main.py"], files | {"main.py": program}).stdout == b"5\n"


def test_failures_are_told_from_success(run):
    outcome = run("raise SystemExit(3)")
    assert (outcome.status, outcome.code, outcome.ok) == ("exited", 3, False)
    assert b"ZeroDivisionError" in run("1 / 0").stderr
    assert not run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); import ctypes; ctypes.string_at(0)").ok


def test_it_says_what_it_is(box):
    assert box.protection.startswith(box.kind)
    assert ("but" in box.protection) == (box.kind == "rlimits")
    assert box.kind in KINDS


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: pass",
        "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-I', *sys.argv])",
    ],
)
def test_fork_bombs(run, program, monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE", 1.0)
    assert not run(program, limits=Limits(seconds=0.5)).ok


def test_threads_are_few(run):
    program = (
        "import os, threading, time\ntry:\n"
        "    for _ in range(200): threading.Thread(target=time.sleep, args=(9,)).start()\n"
        "except RuntimeError as error: os.write(1, str(error).encode())\n"
        "os._exit(0)"
    )
    assert run(program).stdout == b"can't start new thread"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(run, stream):
    outcome = run(
        f"import sys\nwhile True: sys.{stream}.write('x' * 100_000)", limits=Limits(seconds=2, output=300_000)
    )
    assert outcome.status == "output" and len(outcome.stdout) + len(outcome.stderr) <= 600_000


def test_sleeping_for_ever(run):
    outcome = run("import time; print('begun', flush=True); time.sleep(10**6)", limits=Limits(seconds=0.2))
    assert (outcome.status, outcome.code, outcome.stdout) == ("time", None, b"begun\n")


def test_computing_for_ever(run):
    outcome = run("while True: pass")
    assert not outcome.ok and outcome.status in ("exited", "time")  # by its CPU time, unless the machine is very busy


def test_memory(run):
    outcome = run("x = bytearray(3 * 2**30)")
    assert not outcome.ok and b"MemoryError" in outcome.stderr


def test_large_files(run):
    program = (
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with open(os.environ['TMPDIR'] + '/big', 'wb') as file:\n    while True: file.write(b'x' * 2**20)"
    )
    outcome = run(program, limits=Limits(seconds=3))
    assert not outcome.ok and (b"File too large" in outcome.stderr or b"No space left" in outcome.stderr)


def holds(box: Sandbox, what: str) -> None:
    if what in box.protection:
        pytest.skip(f"this kernel cannot: {box.protection}")


def test_writing_outside(box, run, tmp_path):
    holds(box, "reads and writes files")
    tmp_path.chmod(0o777)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mine.chmod(0o666)
    program = (
        "import os, sys\n"
        "there = sys.argv[1]\n"
        "for path in (there + '/new', there + '/mine', 'main.py', sys.prefix + '/new', '/usr/new', '/new'):\n"
        "    try: open(path, 'w').write('theirs'); print(path)\n"
        "    except OSError: pass\n"
        "for path in (sys.argv[1] + '/mine', sys.argv[1]):\n"
        "    try: os.rename(path, path + '2'); print(path)\n"
        "    except OSError: pass"
    )
    outcome = run(program, tmp_path)
    assert outcome.ok and outcome.stdout == b""
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and mine.read_text() == "mine"


def test_reading_secrets(box, run, tmp_path, monkeypatch):
    holds(box, "reads and writes files")
    monkeypatch.setenv("HF_TOKEN", "secret-in-the-environment")
    (tmp_path / "key").write_text("secret-in-a-file")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner() and "pytest" in folder.name:
            folder.chmod(0o755)
    program = (
        "import glob, os, sys\nprint(dict(os.environ))\n"
        "paths = [sys.argv[1], '/etc/passwd', '/etc/shadow', '/root/.ssh/id_rsa', '/proc/1/environ']\n"
        "for path in [*paths, *glob.glob('/proc/[0-9]*/environ'), *glob.glob('/proc/[0-9]*/fd/*')]:\n"
        "    try: print(path, open(path, 'rb').read(100_000))\n"
        "    except OSError: pass"
    )
    outcome = run(program, tmp_path / "key")
    assert outcome.ok and b"TMPDIR" in outcome.stdout
    assert b"secret-in" not in outcome.stdout and b"root:" not in outcome.stdout


def test_killing_the_parent(box, run):
    holds(box, "may signal")
    program = (
        "import os, signal, sys\n"
        "for pid in (int(sys.argv[1]), os.getppid(), -1):\n"
        "    for number in (signal.SIGKILL, signal.SIGTERM):\n"
        "        try: os.kill(pid, number)\n"
        "        except OSError: pass\n"
        "print('still here')"
    )
    bystander = subprocess.Popen(["sleep", "60"])
    outcome = run(program, os.getpid())
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert outcome.stdout in (b"still here\n", b"")  # whom it killed was itself


def test_no_network(box, run):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        server.settimeout(0.2)
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        program = (
            "import socket, sys\n"
            "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 1)\nexcept OSError: print('no TCP')\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "try: s.sendto(b'secret', ('127.0.0.1', int(sys.argv[2])))\nexcept OSError: print('no UDP')"
        )
        lines = run(program, server.getsockname()[1], udp.getsockname()[1]).stdout.split(b"\n")
        if "TCP is open" not in box.protection:
            assert b"no TCP" in lines
            with pytest.raises(TimeoutError):
                server.accept()
        if "is open" not in box.protection:
            with pytest.raises(TimeoutError):
                udp.recv(100)


def test_nothing_outlives_the_program(run):
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\n"
        "print('done')"
    )
    outcome = run(program)
    assert outcome.ok and outcome.stdout == b"done\n"


def test_nothing_outlives_whoever_ran_it(box, tmp_path):
    marker = f"marker-{uuid.uuid4()}"
    shutil.copy(sandbox.__file__, tmp_path / "alone.py")  # without the package, which takes seconds to import
    script = (
        "import sys; from alone import *; print('begun', flush=True); "
        "command = ['python', '-c', 'import time; time.sleep(60)', sys.argv[3]]; "
        "Sandbox(*sys.argv[1:3]).run(command, {}, limits=Limits(60))"
    )
    command = [sys.executable, "-c", script, box.kind, box.python, marker]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path)
    assert parent.stdout is not None and parent.stdout.readline() == b"begun\n"
    time.sleep(1)
    parent.kill()
    parent.communicate()
    if box.kind == "rlimits":
        time.sleep(0.5)
    assert alive(marker) == []
