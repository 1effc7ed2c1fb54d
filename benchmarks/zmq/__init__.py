"""Our ZeroMQ broker beside taskiq's own and beside shared memory."""
