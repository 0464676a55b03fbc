"""The wheel holds all that the command needs."""

import subprocess
import sys
import zipfile

import pytest
from places import ROOT, RUNS, TESTS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pipo/py.typed", "pipo_cli/app.py", "pipo/model/pipo.py"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pipo", "pipo_cli"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_no_script_of_the_checkout_is_in_it(wheel):
    """Neither tests nor what lies in runs/; what can be run as a module is what the package or a user runs."""
    archive = zipfile.ZipFile(wheel)
    code = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    scripts = {path.read_bytes() for folder in (RUNS, TESTS) for path in folder.rglob("*.py")} - {b""}
    assert scripts and not scripts & set(code.values())
    assert {name for name, text in code.items() if b'__name__ == "__main__"' in text} == {
        "pipo/measure/lm_eval.py",  # lm-evaluation-harness with this model
        "pipo/runtime/sandbox.py",  # inside the sandbox
        "pipo/tasks/math_worker.py",  # compares answers apart
        "pipo_cli/demo.py",  # `make demo`
    }


def test_the_command_runs_from_it(wheel, tmp_path):
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    code = "import pipo_cli; print(pipo_cli.__file__); pipo_cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith(str(tmp_path))
    assert "generate" in done.stdout
    assert (tmp_path / "bin" / "pipo").is_file()
