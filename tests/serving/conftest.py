"""A real server process on the loopback, and clients for it."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from places import SRC


class Server:
    """`pipo serve --engine transformers` on a free port. `url` once it listens."""

    def __init__(self, model, *options, **environment):
        command = [sys.executable, "-m", "pipo_cli", "serve", str(model), "--engine", "transformers", "--port", "0"]
        path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        )
        self.greeting = self.process.stdout.readline()
        found = re.match(r"(http://\S+) serves ", self.greeting)
        if not found:
            self.process.kill()
            raise RuntimeError(self.process.communicate()[1])
        self.url = found[1]
        self.stderr = []
        self._reader = threading.Thread(target=lambda: self.stderr.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def stop(self, how=signal.SIGTERM):
        """End it; returns the exit code and what it wrote to stderr."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        self._reader.join(10)
        self.process.stdout.close()
        return code, "".join(self.stderr)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A tiny model's folder whose confidences spread over (0, 1), so that drafts are accepted and rejected."""
    import tiny

    folder = tmp_path_factory.mktemp("served")
    model = tiny.pipo("llama")
    model.generation_config._from_model_config = False  # else the threshold is not read back
    model.generation_config.confidence_threshold = 0.5
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def engine(served):
    """The same model in this process."""
    from pipo.decoding.engine import LocalEngine

    return LocalEngine.load(served)


@pytest.fixture(scope="session")
def server(served):
    """One that many tests share."""
    running = Server(served, "--served-model-name", "tiny", "--max-num-seqs", 8)
    yield running
    code, stderr = running.stop()
    assert code == 0
    assert stderr == ""


@pytest.fixture
def serve():
    """`serve(model, *options)` -> a `Server` that is stopped at the end of the test."""
    started = []

    def start(model, *options, **environment):
        started.append(Server(model, *options, **environment))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def client(server):
    """OpenAI's own client."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def http(server):
    """A plain client."""
    import httpx2

    with httpx2.Client(base_url=server.url, timeout=120) as made:
        yield made
