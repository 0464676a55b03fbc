"""Folders of tiny models, made once a session."""

import pytest
import tiny
from hypothesis import settings

settings.register_profile("pipo", deadline=None)  # a busy machine is no failure
settings.load_profile("pipo")


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
