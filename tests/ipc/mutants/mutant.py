"""What a mistake in the core is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file of the core, and the run of stepkill that must fail with it."""

    name: str
    file: str
    old: str
    new: str
    mode: str
    scenario: str

    def __str__(self) -> str:
        return self.name
