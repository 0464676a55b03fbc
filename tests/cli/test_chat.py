"""`pipo chat`, its input from a pipe."""


def test_a_conversation(pipo, tiny_pipo):
    lines = "what is\nand so\n/reset\nhow many\n/help\n/quit\nnever read\n"
    result = pipo("chat", tiny_pipo, "--max-new-tokens", 5, "--seed", 1, stdin=lines)
    assert result.exit_code == 0, result.exception
    assert result.stdout.count(" steps; drafts: ") == 3
    assert "/reset or /quit" in result.stdout


def test_the_end_of_input_leaves(pipo, tiny_pipo):
    assert pipo("chat", tiny_pipo, stdin="").exit_code == 0


def test_a_prompt_that_is_too_long_ends_nothing(pipo, tiny_pipo):
    result = pipo("chat", tiny_pipo, "--max-new-tokens", 2, stdin=f"{'word ' * 900}\nhi\n")
    assert result.exit_code == 0
    assert "or /reset" in result.stdout.replace("\n", " ")
    assert result.stdout.count(" steps; drafts: ") == 1


def test_interrupting_an_answer_keeps_what_was_said(pipo, tiny_pipo, monkeypatch):
    from pipo.decoding.engine import LocalEngine

    def interrupted(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "complete", interrupted)
    result = pipo("chat", tiny_pipo, stdin="hi\n/quit\n")
    assert result.exit_code == 0
    assert "(stopped)" in result.stdout
