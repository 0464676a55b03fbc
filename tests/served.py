"""Prompts, requests and references for the tests of vLLM."""

import random

import tiny
import torch

from pipo.decoding.options import GREEDY

BLOCK, CHUNK, LENGTH = 64, 256, 1024
"""The engine's block of tokens, tokens a step, longest sequence."""

NAMES = {"threshold": "confidence_threshold", "force": "force_acceptance"}


class Each(list):
    """One value for each prompt."""


def save_tiny(folder, family, **changes):
    """A PIPO folder with a stored threshold that confidences lie on both sides of.

    Its MTP head is no copy of the backbone's layer: that one repeats token 1, whatever stands in its cache.
    """
    from pipo.convert.from_base import from_base

    tokenizer = tiny.tokenizer()
    model = from_base(tiny.base(family, max_position_embeddings=LENGTH, **changes), tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
        model.confidence_head.fc1.weight.normal_(0, 0.2)
        model.confidence_head.fc2.weight.normal_(0, 1.0)
    model.generation_config.confidence_threshold = 0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def draw(lengths, seed=0):
    """Prompts of ordinary tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(3, tiny.VOCAB) for _ in range(length)] for length in lengths]


def params(row=0, **fields):
    """vLLM's, greedy and 24 tokens long by default."""
    from vllm import SamplingParams

    mine = {name: value[row] if isinstance(value, Each) else value for name, value in fields.items()}
    extra = {NAMES[name]: mine.pop(name) for name in NAMES if name in mine}
    return SamplingParams(
        **{"temperature": 0, "max_tokens": 24} | mine, extra_args={k: v for k, v in extra.items() if v is not None}
    )


def ask(llm, prompts, **fields):
    """Outputs of a batch; a field that is an `Each` has one value a prompt."""
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return llm.generate(asked, [params(row, **fields) for row in range(len(prompts))], use_tqdm=False)


def ids(outputs):
    return [list(out.outputs[0].token_ids) for out in outputs]


def reference(local, prompts, new_tokens=24, sampling=GREEDY, **options):
    """What the local decoder answers, batched."""
    return local.complete(prompts, sampling=sampling, max_new_tokens=new_tokens, **{"ignore_eos": True} | options)


def tokens(completions):
    return [one.token_ids for one in completions]
