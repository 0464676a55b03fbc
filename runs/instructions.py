"""Instructions without a right answer, one a line, for `pipo data build` with `questions.format: prompts`.

usage: python runs/instructions.py OUT.jsonl
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from random import Random

SCENES = (
    "a lighthouse,the rain,an old bicycle,a lost key,the moon,a garden in spring,a busy kitchen,a train journey,a shy "
    "cat,a brave mouse,a snowman,the sea,a quiet library,a birthday party,a broken clock,a long walk,a friendly robot,"
    "the first day of school,a farmer and his dog,a night under the stars,a street market,a storm,a letter from a "
    "friend,a small island,a music lesson,a football match,a baker,a river,a red balloon,a forest at dawn,a mountain "
    "hut,an empty house,a painter,a cup of tea,a bridge,a wooden boat,a winter evening,a beehive,a castle,a bus driver"
).split(",")
THINGS = (
    "volcanoes,bees,rainbows,vaccines,gravity,tides,earthquakes,solar panels,batteries,the internet,clouds,glaciers,"
    "magnets,bread,coffee,soap,paper,glass,whales,owls,trees,mushrooms,the heart,sleep,vitamins,bicycles,trains,maps,"
    "libraries,banks,elections,taxes,museums,deserts,rainforests,coral reefs,comets,telescopes,honey,languages"
).split(",")
AIMS = (
    "sleep better,learn a language,save money,eat more vegetables,run a first race,write a letter,plan a trip,grow "
    "tomatoes,make new friends,study for a test,cook rice,clean a kitchen,read more books,stay calm,speak in public,"
    "train a puppy,pack a suitcase,find a job,drink more water,use less plastic,draw a face,play the guitar,start a "
    "garden,wake up early,bake bread,fix a flat tire,remember names,help a neighbor,take good photos,write a diary"
).split(",")
TEMPLATES = {
    "Write a short story about {}.": SCENES,
    "Describe {} in three sentences.": SCENES,
    "Write two sentences about {}.": SCENES,
    "Write a short poem about {}.": SCENES,
    "Suggest a title for a book about {} and say what happens in it.": SCENES,
    "Explain {} to a child.": THINGS,
    "What should I know about {}?": THINGS,
    "Why do people care about {}?": THINGS,
    "Tell me a fact about {}.": THINGS,
    "Give one example of how {} matter in daily life.": THINGS,
    "How can I {}?": AIMS,
    "Give me three tips to {}.": AIMS,
    "Is it hard to {}? Answer briefly.": AIMS,
    "Why should I {}?": AIMS,
    "What is the most common mistake when people {}?": AIMS,
}


def instructions() -> list[str]:
    """All of them, in an order that is mixed and always the same."""
    pairs = [pair for template, words in TEMPLATES.items() for pair in product([template], words)]
    Random(0).shuffle(pairs)
    return [template.format(words) for template, words in pairs]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Path(sys.argv[1]).write_text("".join(json.dumps({"question": text}) + "\n" for text in instructions()))
