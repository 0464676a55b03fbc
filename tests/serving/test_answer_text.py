"""The text of an answer: what leaves is a beginning of the answer, and never one of a stop string."""

import random

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from pipo.serving.text import AnswerText

TOKENIZER = tiny.tokenizer()
WORDS = TOKENIZER("The answer is what how many and so on", add_special_tokens=False)["input_ids"]


def stream(tokens, stop=(), group=1, tokenizer=TOKENIZER):
    """All pieces with the texts that leave at a time, until a stop string ends it. -> (stream, texts)"""
    out, texts = AnswerText(tokenizer, stop), []
    for i, token in enumerate(tokens):
        stopped = out.push(token)
        if stopped or i % group == group - 1:
            texts.append("".join(piece.text for piece in out.take()))
        if stopped:
            break
    return out, [*texts, "".join(piece.text for piece in out.finish())]


@given(st.lists(st.integers(0, tiny.VOCAB - 1), max_size=40), st.integers(1, 3))
def test_texts_join_to_the_decoded_answer(tokens, group):
    out, texts = stream(tokens, group=group)
    assert "".join(texts) == out.text == TOKENIZER.decode(tokens, skip_special_tokens=True)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20), st.data())
def test_stop_strings_end_the_text_and_nothing_of_them_leaves(tokens, data):
    text = TOKENIZER.decode(tokens)
    start = data.draw(st.integers(0, max(len(text) - 1, 0)))
    stop = [text[start : start + data.draw(st.integers(1, 8))] or "none", "swer q", "answers"]
    out, texts = stream(tokens, stop)
    places = [text.find(string) for string in stop if string in text]
    expected = text[: min(places)] if places else text
    assert out.stopped == bool(places)
    assert "".join(texts) == out.text == expected
    assert not any(string in "".join(texts) for string in stop)


def test_every_token_leaves_once():
    tokens = TOKENIZER("so 😀 on é€ many", add_special_tokens=False)["input_ids"]
    out = AnswerText(TOKENIZER, ["\N{PILE OF POO}", "zz"])
    pieces = []
    for token in tokens:
        out.push(token)
        pieces += out.take()
    pieces += out.finish()
    assert [piece.token for piece in pieces] == tokens
    assert "".join(piece.text for piece in pieces) == "so 😀 on é€ many"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(piece.text for piece in pieces)


def test_a_stop_string_over_three_tokens():
    tokens = TOKENIZER("is what how many and so on", add_special_tokens=False)["input_ids"]
    out, texts = stream(tokens, ["t how m"])
    assert out.stopped and "".join(texts) == "is wha"
    assert not any("how" in text for text in texts)


def test_unfinished_characters_end_as_replacements():
    tokens = TOKENIZER("so 😀", add_special_tokens=False)["input_ids"][:-2]
    _, texts = stream(tokens)
    assert texts[-1].endswith("\N{REPLACEMENT CHARACTER}")
    assert "".join(texts) == TOKENIZER.decode(tokens)


@pytest.mark.parametrize(
    ("stop", "text"), [("😀", "so the "), (" 日", "so the 😀"), ("é日", "so the 😀 日本 "), ("x", None)]
)
def test_stop_strings_in_characters_of_several_tokens(stop, text):
    tokenizer = tiny.byte_fallback_tokenizer()
    whole = "so the 😀 日本 é日 ab"
    out, texts = stream(tokenizer(whole)["input_ids"], [stop], tokenizer=tokenizer)
    assert "".join(texts) == out.text == (whole if text is None else text)
    assert out.stopped == (text is not None)


def test_offsets_are_places_in_the_text():
    tokenizer = tiny.byte_fallback_tokenizer()
    out = AnswerText(tokenizer)
    tokens = tokenizer("so 😀é the日 b")["input_ids"]
    pieces = [piece for token in tokens for piece in (out.push(token), out.take())[1]] + out.finish()
    assert out.text == "so 😀é the日 b"
    #                                             ▁so ▁ 😀 in four bytes  é ▁the 日 ▁ b
    assert [piece.start for piece in pieces] == [0, 2, 3, 3, 3, 3, 4, 5, 9, 10, 11]
    assert all(out.text.startswith(piece.text, piece.start) for piece in pieces)


@pytest.mark.parametrize("end", [0, 1, 2])
def test_special_tokens_are_counted_and_have_no_text(end):
    tokens = [*WORDS[:3], end]
    out = AnswerText(TOKENIZER)
    random.seed(0)
    pieces = [piece for token in tokens for piece in (out.push(token), out.take())[1]] + out.finish()
    assert [piece.token for piece in pieces] == tokens and pieces[-1].text == ""
