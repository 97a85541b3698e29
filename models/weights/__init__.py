"""Reads files of weights without running code from them, and loads weights into a network.

Imports `models.network`. Begin with `saved_weights`, which reads files of any origin. `restricted_pickle` interprets
files of ``torch.save``, and `transfer` loads into a network the weights that fit.
"""
