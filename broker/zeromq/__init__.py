"""The taskiq broker over ZeroMQ: clients connect to the one process of a pool that listens."""

from taskiq_supervise.broker.zeromq.broker import ZeroMQBroker
from taskiq_supervise.broker.zeromq.results import ZeroMQResultBackend

__all__ = ["ZeroMQBroker", "ZeroMQResultBackend"]
