"""The local decoder's server under load."""

import psutil
import pytest
from soak import soak


@pytest.mark.slow
def test_soak(serve, served, engine):
    server = serve(served, "--max-num-seqs", 8, "--max-waiting", 12)
    unknown = b'{"messages": [{"role": "user", "content": "a"}], "no_such_field": 1}'
    kinds = soak(server.url, psutil.Process(server.process.pid), engine, "pipo", malformed=(unknown,))
    assert kinds["busy"]
    code, stderr = server.stop()
    assert (code, stderr) == (0, "")
