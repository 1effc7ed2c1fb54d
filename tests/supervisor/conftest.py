"""Real supervisors, started as the end-to-end tests start them."""

from tests.e2e.conftest import supervise

__all__ = ["supervise"]
