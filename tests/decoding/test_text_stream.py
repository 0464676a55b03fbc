"""Texts token by token are the whole's, for tokenizers that spell characters in bytes in either way."""

from itertools import accumulate, chain

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from pipo.decoding.text_stream import UNKNOWN, TextStream, decode, token_text

LEVEL, FALLBACK, SLOW = tiny.tokenizer(), tiny.byte_fallback_tokenizer(), ByT5Tokenizer()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK, SLOW], ids=["level", "fallback", "slow"])
TEXTS = ["so 😀 on é€ the 日本語 so", "😀😀", "  two spaces   three", "日本 a", "\n\tso\n"]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def byte(*values):
    return FALLBACK.convert_tokens_to_ids([f"<0x{value:02X}>" for value in values])


def word(*texts):
    return FALLBACK.convert_tokens_to_ids(list(texts))


def texts(tokenizer, tokens):
    """What becomes known with every token, and what is left at the end."""
    stream = TextStream(tokenizer)
    steps = [*(stream.push(token) for token in tokens), stream.finish()]
    pieces = list(chain.from_iterable(steps))
    assert [piece.token for piece in pieces] == tokens
    assert [piece.start for piece in pieces] == [0, *accumulate(len(piece.text) for piece in pieces)][:-1]
    return ["".join(piece.text for piece in step) for step in steps]


@TOKENIZERS
@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_whole_and_with_their_last_token(tokenizer, text):
    *pieces, rest = texts(tokenizer, ids(tokenizer, text))
    assert "".join(pieces) == decode(tokenizer, ids(tokenizer, text)) == text
    assert rest == "" and UNKNOWN not in "".join(pieces)


def test_a_character_in_bytes_does_not_wait_for_the_next_token():
    assert texts(FALLBACK, byte(0xE2, 0x82, 0xAC, 0xC3, 0xA9)) == ["", "", "€", "", "é", ""]
    assert texts(LEVEL, ids(LEVEL, "€é")) == ["", "", "€", "", "é", ""]


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (byte(0xF0, 0x9F, 0x98, 0x80), ["", "", "", "😀"]),
        (byte(0xC3, 0xFF) + word("a"), [UNKNOWN, UNKNOWN, "a"]),
        (byte(0xC3, 0xA9, 0x82, 0xFF) + word("a"), ["", "é", UNKNOWN, UNKNOWN, "a"]),
        (word("▁so", "</s>", "▁the", "</s>"), ["so", "", " the", ""]),
    ],
)
def test_a_piece_is_its_tokens(tokens, pieces):
    stream = TextStream(FALLBACK)
    out = [*chain.from_iterable(stream.push(token) for token in tokens), *stream.finish()]
    assert [(piece.token, piece.text) for piece in out] == list(zip(tokens, pieces, strict=True))


def test_spaces_before_words_stay():
    tokens = word("▁so", "</s>", "▁the", "▁", "▁", "b", "▁so")
    assert texts(FALLBACK, tokens) == ["so", "", " the", " ", " ", "b", " so", ""]


@TOKENIZERS
def test_special_tokens_have_no_text(tokenizer):
    end = tokenizer.eos_token_id
    one, two = ids(tokenizer, "ab")[-2:]
    assert texts(tokenizer, [end, one, end, end, two, end]) == ["", "a", "", "", "b", "", ""]


@pytest.mark.parametrize("tokenizer", [LEVEL, FALLBACK], ids=["level", "fallback"])
def test_an_unfinished_character_is_left_at_the_end(tokenizer):
    tokens = ids(tokenizer, "a😀")[:-1]
    *pieces, rest = texts(tokenizer, tokens)
    assert "".join(pieces) == "a" and rest and set(rest) == {UNKNOWN}
    assert "a" + rest == decode(tokenizer, tokens)


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (byte(0xFF) + word("a"), ["", f"{UNKNOWN}a", ""]),
        (byte(0xE2, 0x82, 0xAC, 0xFF) + word("a", "▁so"), ["", "", "€", "", f"{UNKNOWN}a", " so", ""]),
        (word("▁so") + byte(0x20, 0xFF) + word("a"), ["so", " ", "", f"{UNKNOWN}a", ""]),
        (byte(0xC3, 0x41) + word("b"), ["", "", f"{UNKNOWN}{UNKNOWN}b", ""]),
        (byte(0xE2, 0x82) + word("</s>"), ["", "", "", UNKNOWN * 2]),
    ],
)
def test_bytes_that_are_no_character_become_replacements_and_the_stream_goes_on(tokens, pieces):
    assert texts(FALLBACK, tokens) == pieces


@given(st.lists(st.integers(0, tiny.VOCAB - 1), max_size=40))
def test_any_tokens_of_a_byte_level_tokenizer(tokens):
    assert "".join(texts(LEVEL, tokens)) == decode(LEVEL, tokens)


@given(st.lists(st.integers(0, 3 + 255), max_size=40))
def test_any_tokens_of_a_slow_tokenizer(tokens):
    assert "".join(texts(SLOW, tokens)) == decode(SLOW, tokens)


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=UNKNOWN)
WORDS = st.sampled_from([i for i in range(len(FALLBACK)) if not FALLBACK.convert_ids_to_tokens(i).startswith("<0x")])


@given(st.lists(CHARACTERS.map(lambda c: byte(*c.encode())) | WORDS.map(lambda w: [w]), max_size=30))
def test_any_characters_of_a_byte_fallback_tokenizer(parts):
    tokens = list(chain.from_iterable(parts))
    assert "".join(texts(FALLBACK, tokens)) == decode(FALLBACK, tokens)


def shown(run):
    """A run of bytes as a stream shows it: as far as it is good, then a replacement for every byte."""
    good = "".join(str(bytes(run), "utf-8", "replace").partition(UNKNOWN)[0])
    return good + UNKNOWN * (len(run) - len(good.encode()))


RUNS = st.lists(st.integers(0, 255).filter(lambda b: b != 0xEF), min_size=1, max_size=8)  # no U+FFFD itself


@given(st.lists(RUNS, max_size=8))
def test_any_bytes_of_a_byte_fallback_tokenizer(runs):
    """Where `decode` takes all of a run for invalid, characters that were handed out stay."""
    tokens = word("a") + [token for run in runs for token in (*byte(*run), *word("b"))]
    joined = "".join(texts(FALLBACK, tokens))
    assert joined == "a" + "".join(shown(run) + "b" for run in runs)
    if UNKNOWN not in joined:
        assert joined == decode(FALLBACK, tokens)


@TOKENIZERS
def test_a_token_alone_says_what_it_says_in_a_text(tokenizer):
    tokens = ids(tokenizer, "a so ab")
    spelled = [token_text(tokenizer, token) for token in tokens]
    assert "".join(spelled).removeprefix(" ") == "a so ab"
    assert token_text(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token


def test_parts_of_characters_alone_are_unknown():
    assert {token_text(FALLBACK, token) for token in byte(0xE2, 0x82, 0xFF)} == {UNKNOWN}
    assert token_text(FALLBACK, *byte(0x0A)) == "\n"
    for token in range(tiny.VOCAB):
        assert token_text(LEVEL, token) == LEVEL.decode([token])
