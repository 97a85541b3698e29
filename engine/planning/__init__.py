"""Planning: the micro-batch, accumulation and recompute level that fit a VRAM budget.

Imports `engine.training`, `engine.machine` and `engine.memory`. Begin with `predict`. `simulation` runs a step on the
meta device, `choose` takes the fastest split that fits, `settle` writes it into a configuration, `table` shows it.
`question` is the table of `engine.plan`; `data_section` checks sizes.
"""
