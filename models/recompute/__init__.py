"""Recompute levels: less memory for activations, in exchange for elementwise operations or repeated layers.

Imports `models.kernels` and `models.precision`. Begin with `levels`, which explains the levels and sets them. `recipes`
finds how to compute a tensor again, and `rank` finds the layers that are worth repeating.
"""
