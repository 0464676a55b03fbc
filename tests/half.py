"""Models in bfloat16, as they are released, with chats to train them on."""

import json

import tiny

from pipo.convert.folders import convert


def write_folders(place, family):
    """`base`, `pipo` converted from it, and chats.jsonl."""
    tiny.base(family).bfloat16().save_pretrained(place / "base")
    tiny.tokenizer().save_pretrained(place / "base")
    convert(str(place / "base"), place / "pipo")
    answer = {"role": "assistant", "content": "so many"}
    chats = [{"messages": [{"role": "user", "content": f"what is {i}"}, answer]} for i in range(8)]
    (place / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return place
