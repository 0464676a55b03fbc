"""How tests run, and folders of tiny models, made once a session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are faster on one

import pytest
import tiny
from hypothesis import settings

settings.register_profile("pipo", deadline=None)  # a busy machine is no failure
settings.load_profile("pipo")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """A file's tests share models and servers, so one worker runs them; an item may have a group already."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What tests build and tokenize is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """An uncompressed model's folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    tiny.base("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def unsure(tmp_path_factory):
    """A PIPO model's folder whose confidences spread over (0, 1)."""
    folder = tmp_path_factory.mktemp("unsure")
    tiny.pipo("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_drafted(tmp_path_factory):
    """An uncompressed model's folder with an MTP head beside it."""
    from pipo.model.mtp_base import save_mtp

    folder = tmp_path_factory.mktemp("tiny_drafted")
    model = tiny.drafted("llama")
    model.base.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    save_mtp(model.mtp, folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_pipo(tiny_llama, tmp_path_factory):
    """The same, converted."""
    from pipo.convert.folders import convert

    folder = tmp_path_factory.mktemp("tiny_pipo")
    convert(tiny_llama, folder)
    return str(folder)
