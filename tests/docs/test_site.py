"""The site: pages that are made from the package, and that all of it is built without a warning."""

import runpy

import pytest
import typer.main
from places import DOCS, ROOT

from pipo_cli.app import app


@pytest.fixture(scope="module")
def made():
    """docs/site/reference.py."""
    return runpy.run_path(str(DOCS / "site" / "reference.py"))


def fields(made, kind, prefix=""):
    for name, field in kind.model_fields.items():
        inner = made["kind_of"](field.annotation)
        yield f"{prefix}{name}", made["meaning"](field, inner)
        if inner is not None:
            yield from fields(made, inner, f"{prefix}{name}.")


def test_every_field_of_a_recipe_says_what_it_is(made):
    page = made["recipe_page"]()
    for verb, kind in made["RECIPES"].items():
        part = page.split(f"\n## {verb}\n")[1].split("\n## ")[0]
        for name, meaning in fields(made, kind):
            assert f"| `{name}` |" in part
            assert meaning, f"{verb}: {name} has no description"


def test_every_option_of_every_verb_is_on_the_page(made):
    parts = {part.split("\n")[0]: part for part in made["command_page"]().split("\n## pipo ")}
    verbs = typer.main.get_command(app).commands
    for name, verb in verbs.items():
        for option in verb.params:
            wanted = option.opts[0] if option.param_type_name == "option" else option.metavar
            assert wanted in parts[name], f"pipo {name}: {wanted}"
    assert "--config" in parts["data build"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    assert (tmp_path / "reference" / "commands.html").exists()
