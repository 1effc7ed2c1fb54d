"""What a slot's word says, and the names of payload files that follow from it.

state:4 | owner:12 | attempt:8 | generation:40
"""

from __future__ import annotations

GENERATION = (1 << 40) - 1
"""Mask."""
WRITING = 1
"""The state before those that a message can be seen in (MessageState)."""


def state_of(word: int) -> int:
    return word >> 60


def owner_of(word: int) -> int:
    return word >> 48 & 0xFFF


def attempt_of(word: int) -> int:
    return word >> 40 & 0xFF


def generation_of(word: int) -> int:
    return word & GENERATION


def request_file(slot: int, generation: int) -> str:
    return f"q-{slot}-{generation}"


def parsed_file(name: str) -> tuple[int, int, int | None] | None:
    """Slot, generation, and attempt if it is a result's; None: not a name that is made here."""
    match name.split("-"):
        case ["q", slot, generation]:
            return int(slot), int(generation), None
        case ["r", slot, generation, attempt]:
            return int(slot), int(generation), int(attempt)
    return None


def result_file(slot: int, generation: int, attempt: int) -> str:
    return f"r-{slot}-{generation}-{attempt}"
