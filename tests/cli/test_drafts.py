"""Drafts on the terminal."""

import io

import pytest
import tiny
from rich.console import Console

from pipo.pairing import Slot
from pipo_cli.drafts import ACCEPTED, REJECTED, legend, render_slots


def spans(text, style):
    return [text.plain[span.start : span.end] for span in text.spans if span.style == style]


def test_characters_of_several_tokens_stay_whole():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("né 日本 ok")["input_ids"]
    slots = [
        Slot(first, second, 0.9, accepted=True) if second else Slot(first)
        for first, second in zip(ids[::2], [*ids[1::2], *([None] * (len(ids) % 2))], strict=True)
    ]
    assert render_slots(slots, tokenizer).plain == "né 日本 ok"


def test_rejected_drafts_follow_token_1_and_are_no_part_of_the_answer():
    tokenizer = tiny.tokenizer()
    one, two = (tokenizer(word)["input_ids"][0] for word in ("a", "b"))
    slots = [Slot(one, two, 0.1), Slot(one, two, 0.9, accepted=True), Slot(one)]
    text = render_slots(slots, tokenizer)
    assert text.plain == "ababa"
    assert spans(text, REJECTED) == ["b"]
    assert spans(text, ACCEPTED) == ["b"]
    assert legend(slots).plain == "4 tokens in 3 steps; drafts: 1 accepted, 1 rejected"


@pytest.mark.parametrize(("colours", "shown"), [("standard", "aba"), (None, "aa")])
def test_without_colours_rejected_drafts_are_left_out(colours, shown):
    tokenizer = tiny.tokenizer()
    one, two = (tokenizer(word)["input_ids"][0] for word in ("a", "b"))
    console = Console(file=io.StringIO(), force_terminal=colours is not None, color_system=colours)
    assert render_slots([Slot(one, two, 0.1), Slot(one)], tokenizer, console).plain == shown


def test_spaces_before_words_and_characters_in_bytes():
    tokenizer = tiny.byte_fallback_tokenizer()
    the, so, *face = tokenizer("the so😀")["input_ids"]
    slots = [
        Slot(the, so, 0.1),
        Slot(so, face[0], 0.9, True),
        Slot(face[1], so, 0.2),
        Slot(face[2], face[3], 0.9, True),
    ]
    text = render_slots(slots, tokenizer)
    assert text.plain == "the so so so😀"
    assert spans(text, REJECTED) == [" so", " so"] and "".join(spans(text, ACCEPTED)) == "😀"


def test_an_unfinished_character_is_shown_at_the_end():
    tokenizer = tiny.tokenizer()
    one, two, *_ = tokenizer("😀")["input_ids"]
    assert render_slots([Slot(one, two, 0.9, True)], tokenizer).plain == "\N{REPLACEMENT CHARACTER}"


def test_the_end_of_turn_is_not_shown_unless_it_was_rejected():
    tokenizer = tiny.tokenizer()
    end = tokenizer.eos_token_id
    assert render_slots([Slot(end)], tokenizer).plain == ""
    assert render_slots([Slot(end, end, 0.1)], tokenizer).plain == "<|im_end|>"
