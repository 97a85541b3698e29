"""The run folder, and what survives in it: checkpoints, logs, the lock, and the way on after a fault.

Imports `engine.training` and below. Begin with `folder`, which says what a run folder holds; `checkpoint` reads
weights, `checkpoint_io` writes files that survive a crash.
"""
