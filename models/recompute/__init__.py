"""Recompute levels: less memory for activations, paid with cheap arithmetic or with repeated layers.

Imports `models.kernels` and `models.precision`. Begin with `levels`, which explains the levels and puts them on a
network. `recipes` says how to compute again what autograd would keep; `rank` finds the layers that are worth repeating.
"""
