"""The process tree: what it decides (a pure core), what it does (a thin shell), how to talk to it.

`core` answers every event with a new state and a list of effects and touches nothing outside
itself; `shell` turns signals, exits, timers and messages into events, and effects into forks,
signals and messages. The process that runs this imports neither taskiq nor the application:
whatever their code does wrong, the one that has to clean up after it is not inside it.
"""
