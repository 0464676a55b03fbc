"""The memory of Qwen3.5's sizes, counted from their configs: what docs/reproduce.md says fits where."""

import memory_table
import pytest
from places import DOCS


@pytest.mark.parametrize(("case", "card"), [(("4B", "SFT", 8192), 24), (("4B", "OPD", 16384), 80)], ids=str)
def test_it_fits_the_card_and_the_table_says_how_much_it_takes(case, card, tmp_path):
    found = memory_table.row(memory_table.write(tmp_path), *case)
    assert float(found[-1]) < card
    assert f"| {' | '.join(found)} |" in (DOCS / "reproduce.md").read_text()
