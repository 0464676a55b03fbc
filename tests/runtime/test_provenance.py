"""Where results come from."""

from __future__ import annotations

import json
import sys

import pipo
from pipo.runtime.provenance import provenance, write_provenance


def test_the_facts(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pipo", "eval", "a folder"])
    monkeypatch.chdir(tmp_path)
    found = provenance(data=["x"])
    assert found["command"] == "pipo eval 'a folder'" and found["data"] == ["x"]
    assert found["versions"]["pipo"] == pipo.__version__ and found["versions"]["torch"]
    assert found["git_revision"] is None and found["hardware"]["cores"] >= 1


def test_the_file(tmp_path):
    write_provenance(tmp_path, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]
    assert json.loads((tmp_path / "provenance.json").read_text())["seed"] == 3
