"""The run folder and what survives in it: checkpoints, logs and the lock; and how to resume after a fault.

Imports `engine.training` and below. Begin with `folder`, the content of a run folder; `checkpoint` reads weights,
`checkpoint_io` writes files that survive a crash.
"""
