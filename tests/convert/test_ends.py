"""What ends an answer is what training taught, whatever a base's files say."""

import json

import pytest
import real
import tiny
from transformers import GenerationConfig

from pipo.convert.folders import convert
from pipo.convert.pad_token import choose_pad, turn_ends
from pipo.decoding.engine import LocalEngine
from pipo.errors import UsageError
from pipo.training.recipe import SftRecipe
from pipo.training.sft import sft

END, PAD, OTHER = 1, 2, 5
LAYOUTS = [
    {"eos_token_id": OTHER, "pad_token_id": PAD},
    {"eos_token_id": [OTHER, END]},
    {"eos_token_id": None},
    {"eos_token_id": PAD, "pad_token_id": PAD},
]


def base(folder, generation, **special):
    """A base whose files say what ends an answer in this way; None: nothing."""
    tiny.base("llama").save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    config = json.loads(file.read_text()) | generation
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return str(folder)


@pytest.mark.parametrize("special", [{}, {"eos_token": "<|pad|>"}], ids=["its EOS", "another EOS"])
@pytest.mark.parametrize("generation", LAYOUTS, ids=str)
def test_a_converted_model_stops_where_the_template_ends_a_turn(generation, special, tmp_path):
    convert(base(tmp_path / "base", generation, **special), tmp_path / "out")
    engine = LocalEngine.load(str(tmp_path / "out"))
    assert END in engine.ends and engine.model.config.pad_token_id not in engine.ends
    assert set(engine.ends) <= {END, OTHER}


@pytest.mark.parametrize("objective", ["regular", "mtp"])
def test_the_uncompressed_control_stops_there_too(objective, tmp_path):
    folder = base(tmp_path / "base", LAYOUTS[0])
    chat = {"messages": [{"role": "user", "content": "so"}, {"role": "assistant", "content": "what"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    trainer = {"max_steps": 1, "use_cpu": True}
    data = {"train": [str(tmp_path / "chats.jsonl")]}
    sft(SftRecipe(model=folder, output=str(tmp_path / "out"), objective=objective, data=data, trainer=trainer))
    assert LocalEngine.load(str(tmp_path / "out")).ends == [END, OTHER]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6"])
def test_the_layout_of_a_base_that_was_trained_on_no_chats(name):
    """Qwen's base models end at the token that their tokenizer pads with."""
    tokenizer = real.qwen(name)
    tokenizer.eos_token = "<|endoftext|>"
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    ends = turn_ends(tokenizer, GenerationConfig(eos_token_id=pad))
    assert ends == [end, pad] and choose_pad(tokenizer, ends[:1]) == pad


def test_a_pad_that_begins_every_prompt_is_not_taken():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.bos_token
    assert choose_pad(tokenizer, [END]) not in (END, tokenizer.bos_token_id)


def test_where_nothing_ends_an_answer_conversion_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="nothing ends an answer"):
        turn_ends(tokenizer, GenerationConfig())
