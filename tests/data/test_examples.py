"""Conversations -> examples, with real chat templates and a real vocabulary."""

import json

import pytest
import real
import tiny
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from pipo.data.chat import Chat, parse_chat, turn_end
from pipo.data.examples import Examples
from pipo.errors import UsageError

QWEN = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris", "days": 2}'}}]
THOUGHT = "<think>\nShe greets me.\n</think>\n\nHello there."


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


PLAIN = [user("Hi"), answer("Hello there."), user("More?"), answer("Yes,\n\nmore.")]
THINKING = [{"role": "system", "content": "Be kind."}, user("Hi"), answer(THOUGHT), user("More?")]
THINKING += [answer("Yes.", reasoning_content="She wants more.")]
CALLING = [user("Weather?"), answer(None, tool_calls=CALL), {"role": "tool", "content": "sunny"}, answer("Sunny.")]


def read(messages, **more):
    """As from a line of JSONL."""
    chat = parse_chat(json.dumps({"messages": messages, **more}))
    assert isinstance(chat, Chat), chat
    return chat


def pieces(tokenizer, chat, **how):
    """(ids of the prompt, text of the answer) of every example."""
    rows = Examples(tokenizer, **how).rows(chat)
    assert isinstance(rows, list), rows
    return [(row.ids[:start], tokenizer.decode(row.ids[start:stop])) for row in rows for start, stop, _ in row.answers]


def at_inference(tokenizer, messages, **options):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def refusal(tokenizer, messages, **more):
    found = Examples(tokenizer).rows(read(messages, **more))
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}], ids=["default", "off"])
def test_every_answer_follows_the_prompt_of_inference(name, options):
    tokenizer, chat = real.qwen(name), read(PLAIN)
    found = pieces(tokenizer, chat, template=options)
    assert [ids for ids, _ in found] == [at_inference(tokenizer, chat.messages[:turn], **options) for turn in (1, 3)]
    for (ids, text), said in zip(found, ("Hello there.", "Yes,\n\nmore."), strict=True):
        before, _, spoken = text.rpartition("</think>")
        assert spoken.strip() == said + "<|im_end|>"
        thinks = name in ("qwen3", "qwen3_5_think", "qwen3_6") and not options
        assert before == ({"qwen3": "<think>\n\n"}.get(name, "\n") if thinks else "")
        assert tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n") == (not thinks)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6"])
def test_thoughts_are_targets_and_leave_with_their_turn(name):
    tokenizer, chat = real.qwen(name), read(THINKING)
    (first, said), (second, more) = pieces(tokenizer, chat)
    assert first == at_inference(tokenizer, chat.messages[:2]) and second == at_inference(tokenizer, chat.messages[:4])
    assert said.removeprefix("<think>\n") == "She greets me.\n</think>\n\nHello there.<|im_end|>"
    assert more.removeprefix("<think>\n") == "She wants more.\n</think>\n\nYes.<|im_end|>"
    assert "greets" not in tokenizer.decode(second)


@pytest.mark.parametrize("name", QWEN)
def test_tools_and_their_calls(name):
    tokenizer, chat = real.qwen(name), read(CALLING, tools=[TOOL])
    (first, call), (second, last) = pieces(tokenizer, chat)
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "days": 2}
    assert first == at_inference(tokenizer, chat.messages[:1], tools=[TOOL])
    assert second == at_inference(tokenizer, chat.messages[:3], tools=[TOOL])
    assert '"weather"' in tokenizer.decode(first) and "sunny" in tokenizer.decode(second)
    assert "weather" in call and "Paris" in call and call.endswith("</tool_call><|im_end|>")
    assert last.endswith("Sunny.<|im_end|>")


@pytest.mark.parametrize("name", QWEN)
def test_a_turn_of_weight_0_is_read_and_not_learned(name):
    tokenizer = real.qwen(name)
    ((prompt, text),) = pieces(tokenizer, read([PLAIN[0], answer("Hello there.", weight=0), *PLAIN[2:]]))
    assert "Hello there." in tokenizer.decode(prompt) and "more." in text
    assert "weight" in refusal(tokenizer, [user("Hi"), answer("So", weight=0)])


def test_what_a_template_refuses_is_a_reason():
    system = {"role": "system", "content": "Be kind."}
    assert len(pieces(real.qwen("qwen3"), read([user("Hi"), system, answer("So")]))) == 1
    assert "System message must be at the beginning" in refusal(
        real.qwen("qwen3_5_think"), [user("Hi"), system, answer("So")]
    )
    assert "No user query" in refusal(real.qwen("qwen3_6"), [system, answer("So"), user("Hi"), answer("So")])
    thoughtful = Examples(real.qwen("qwen3_5_think"), template={"enable_thinking": False}).rows(read(THINKING))
    assert thoughtful == "message 3: has thoughts, and its prompt says that there are none (enable_thinking)"


def test_nothing_is_dropped_in_silence():
    assert "drops its thoughts" in refusal(real.qwen("qwen2_5"), [user("Hi"), answer("Yes", reasoning_content="Hm")])
    assert "knows no tool calls" in refusal(tiny.tokenizer(), CALLING)
    assert "knows no tools" in refusal(tiny.tokenizer(), PLAIN, tools=[TOOL])


def test_a_thought_that_only_the_prompt_begins():
    """Of templates that write no thought into an answer that is there."""
    tokenizer = real.qwen("deepseek_r1_distill")
    tokenizer.add_tokens(["<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<｜end▁of▁sentence｜>"
    thought = "She greets me.\n</think>\n\nHello there.<｜end▁of▁sentence｜>"
    for turn in (answer(THOUGHT), answer("Hello there.", reasoning_content="She greets me.")):
        ((prompt, text),) = pieces(tokenizer, read([user("Hi"), turn]))
        assert text == thought and prompt == at_inference(tokenizer, [user("Hi")])
    assert "has no thoughts, and its prompt begins with one" in refusal(tokenizer, PLAIN)


def test_an_empty_thought_that_only_the_prompt_has():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    assert [text for _, text in pieces(tokenizer, read(PLAIN))] == ["Hello there.<|im_end|>", "Yes,\n\nmore.<|im_end|>"]
    assert "has thoughts" in refusal(tokenizer, [user("Hi"), answer(THOUGHT)])


def test_the_prefix_is_put_in_once():
    for name, own in (("qwen3", False), ("qwen3_5_think", True)):
        tokenizer, chat = real.qwen(name), read([user("Hi"), answer(THOUGHT)])
        prompt = at_inference(tokenizer, chat.messages[:1])
        begun = prompt if own else prompt + tokenizer("<think>\n")["input_ids"]
        assert pieces(tokenizer, chat, prefix="<think>\n") == [
            (begun, "She greets me.\n</think>\n\nHello there.<|im_end|>")
        ]
        (row,) = Examples(tokenizer, prefix="<think>\n", prompts=True).rows(chat)
        assert row.ids == begun and not row.answers


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen3", "<|im_end|>"), ("llama3_1", "<|eot_id|>"), ("phi3", "<|end|>"), ("gemma3", "<end_of_turn>")],
)
def test_the_end_of_a_turn_is_the_templates(name, end):
    tokenizer = real.qwen(name)
    tokenizer.add_tokens([end], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|endoftext|>"
    assert turn_end(tokenizer) == end
    assert next(text for _, text in pieces(tokenizer, read(PLAIN))).endswith("Hello there." + end)


def test_a_template_that_ends_nothing_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.TEMPLATE.replace("<|im_end|>", "").replace("<|im_start|>", "")
    with pytest.raises(UsageError, match="chat_template: writes no token behind an answer"):
        Examples(tokenizer)


def test_options_that_a_template_does_not_have_are_refused():
    with pytest.raises(UsageError, match=r"data\.template\.thinking: the model's chat template has no such option"):
        Examples(real.qwen("qwen3"), template={"thinking": False})
    with pytest.raises(UsageError, match=r"data\.template\.messages"):
        Examples(real.qwen("qwen3"), template={"messages": []})


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<|vision_pad|>"])
def test_special_tokens_inside_what_is_said_are_named(token):
    tokenizer = real.qwen("qwen3")
    for messages in ([user(f"a {token} b"), answer("So")], [user("a"), answer("So", reasoning_content=token)]):
        assert f"holds the special token {token}" in refusal(tokenizer, messages)
    calls = [{"name": "weather", "arguments": {"city": token}}]
    assert f"holds the special token {token}" in refusal(tokenizer, [user("a"), answer("", tool_calls=calls)])
    assert len(pieces(tokenizer, read([user("what is <think> or <tool_call>?"), answer("So")]))) == 1


def test_a_vocabulary_that_marks_words():
    """An answer's ids are those of the text that it continues: no word mark where there is no space."""
    words = ["\u2581", *"ThesovryuAB:\n", "\u2581The", "The", "\u2581so"]
    merges = [("T", "h"), ("Th", "e"), ("\u2581", "The"), ("s", "o"), ("\u2581", "so")]
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *dict.fromkeys([*words, "Th", "so"])])}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    template = "{% for m in messages %}{{ ('A:' if m.role == 'user' else 'B:') + m.content }}"
    template += "{{ '</s>' if m.role == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}B:{% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", eos_token="</s>", chat_template=template
    )
    chat = read([user("so"), answer("The so"), user("very so"), answer("The")])
    found = pieces(tokenizer, chat)
    assert [ids for ids, _ in found] == [at_inference(tokenizer, chat.messages[:turn]) for turn in (1, 3)]
    rows = Examples(tokenizer).rows(chat)
    start, stop, _ = rows[0].answers[0]
    assert tokenizer.convert_ids_to_tokens(rows[0].ids[start:stop]) == ["The", "\u2581so", "</s>"]


def test_answers_share_a_row_where_the_template_only_appends():
    (row,) = Examples(tiny.tokenizer()).rows(read(PLAIN))
    assert [turn for _, _, turn in row.answers] == [1, 3]
    assert len(Examples(real.qwen("qwen3")).rows(read(PLAIN))) == 2  # the empty thought leaves with its turn
    assert len(Examples(real.qwen("qwen3"), template={"enable_thinking": False}).rows(read(CALLING))) == 2
    assert len(Examples(real.qwen("qwen3_5_nothink")).rows(read(CALLING))) == 1
