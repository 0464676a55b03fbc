"""The layout of docs/architecture.md: every folder is a room on a floor, and imports go down."""

import ast

import pytest
from places import DOCS, SRC

FLOORS = (
    ("pipo",),  # the vocabulary: pairing, errors
    ("runtime",),
    ("data", "model", "tasks"),
    ("convert",),
    ("decoding",),
    ("data/build", "vllm"),
    ("serving", "training"),
    ("training/distill",),
    ("training/plan",),
    ("measure/bench", "measure/evals"),
    ("measure", "measure/calibration"),
    ("pipo_cli",),
)
"""From the ground up. Rooms of one floor do not know each other."""

LATE = {
    ("pipo", "model/config.py"),  # `import pipo` registers the model with transformers
    ("pipo", "model/pipo.py"),
    ("model/pipo.py", "convert/from_base.py"),  # class methods of PipoForCausalLM
    ("model/pipo.py", "convert/published.py"),
    ("model/pipo.py", "decoding/generate.py"),
}
"""Imports that climb and may: what users call on the model itself."""

ROOT_FILES = {"__init__.py", "errors.py", "pairing.py", "py.typed"}


def modules():
    """Dotted name -> file."""
    found = {}
    for path in [*(SRC / "pipo").rglob("*.py"), *(SRC / "pipo_cli").rglob("*.py")]:
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """The modules of this project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES and alias.name != "pipo")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("pipo", "pipo_cli"):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else node.module


def room(path):
    """The folder of a file, by its path below the package; the packages' own names for their roots."""
    inside = path.relative_to(SRC).parent.as_posix()
    return inside.removeprefix("pipo/")


def floor(path):
    return next(number for number, rooms in enumerate(FLOORS) if room(path) in rooms)


def place(path):
    inside = path.relative_to(SRC).as_posix().removeprefix("pipo/")
    return "pipo" if inside == "__init__.py" else inside


EDGES = {(path, MODULES[name]) for path in MODULES.values() for name in imports(path)}


def test_the_root_holds_the_vocabulary_alone():
    assert {path.name for path in (SRC / "pipo").iterdir() if path.is_file()} == ROOT_FILES


def test_no_import_climbs_or_crosses_to_a_neighbour():
    wrong = {
        (place(user), place(used))
        for user, used in EDGES
        if room(user) != room(used) and floor(used) >= floor(user) and (place(user), place(used)) not in LATE
    }
    assert not wrong


def test_every_permitted_climb_is_still_made():
    assert {(place(user), place(used)) for user, used in EDGES} >= LATE


def test_no_circle_of_files():
    below = {path: {used for user, used in EDGES if user == path and used != path} for path in MODULES.values()}
    for user, used in list(below.items()):
        below[user] = {other for other in used if (place(user), place(other)) not in LATE}
    while below:
        free = {path for path, used in below.items() if not used & below.keys()}
        assert free, f"in or above a circle: {sorted(map(place, below))}"
        below = {path: used for path, used in below.items() if path not in free}


@pytest.mark.parametrize("name", sorted({name for rooms in FLOORS for name in rooms}))
def test_every_room_is_on_the_map(name):
    assert f"`{name}/`" in (DOCS / "architecture.md").read_text()
