"""The decisions of a supervisor about one pool, as a pure function: `step`."""
