"""A refusal in two parts: what is wrong, and the remedy. The command line has other remedies than a call: options.

Invariant: as a sentence it reads ``fact: remedy``, as every message does.
"""

from functools import partial
from typing import Any


class Refusal(ValueError):  # noqa: N818  named after what it is
    """What cannot work.

    Attributes:
        fact: What is wrong, with the value.
        about: What it is about, by which whoever knows a better remedy tells it: "pixels", "types", "outputs",
            "forget_labels", "already_forgotten", "recognized" or "unreachable".
        numbers: The classes, or the outputs of the model, that it names.
    """

    def __init__(self, fact: str, remedy: str, *, about: str, numbers: tuple[int, ...] = ()) -> None:
        super().__init__(f"{fact}: {remedy}")
        self.fact, self.about, self.numbers = fact, about, numbers

    def __reduce__(self) -> tuple[Any, ...]:
        """Come out of a worker process whole: an exception is made anew from its message alone, which lacks a part."""
        fact, remedy = self.fact, str(self).removeprefix(f"{self.fact}: ")
        return partial(Refusal, about=self.about, numbers=self.numbers), (fact, remedy)
