"""Reads files of weights without running anything in them, and puts weights into a network.

Imports `models.network`. Begin with `saved_weights`, which reads a file of any origin; `restricted_pickle` interprets
what ``torch.save`` wrote, and `transfer` loads into a network what fits.
"""
