"""`bench`: what a step, a round and an answer cost here, against the floor of the same machine."""
