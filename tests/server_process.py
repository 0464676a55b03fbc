"""A server in a process of its own."""

import os
import socket
import subprocess
import time

import httpx2
from places import SRC

START_SECONDS = 600


class Process:
    """A server on a free port, once it is healthy."""

    def __init__(self, log, arguments, more=(), **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | environment
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*arguments, "--port", str(self.port), *more], env=env, stdout=out, stderr=out
            )

    def wait(self):
        """Until it answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            try:
                if httpx2.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)

    def stop(self):
        """The exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(120)
