"""The one error that a user can cause: it names the field and the fix."""

from __future__ import annotations


class UsageError(Exception):
    """Bad input. The command line prints it as one line and exits with 2.

    `str(error)` is "field: problem; fix".
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        super().__init__(f"{field}: {problem}; {fix}")
        self.field, self.problem, self.fix = field, problem, fix

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, str, str]]:
        """Other processes raise it too."""
        return type(self), (self.field, self.problem, self.fix)


def extra(name: str) -> str:
    """The fix where the packages of an extra are missing."""
    return f"install the extra {name} (docs/install.md)"


def first_line(error: Exception) -> str:
    """An error's first line, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
