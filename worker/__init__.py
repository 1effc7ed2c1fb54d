"""The room of the workers: zygote, what a worker is after its fork, its runtime and its receiver.

Importing it imports neither taskiq nor the application: the supervisor's process reads
`worker.config` from here.
"""
