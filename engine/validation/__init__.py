"""Validation of a network, from predictions to metrics, without Lightning.

Imports `engine.training` for precision and ranks. Begin with `evaluation`. `metrics` computes the results. It uses the
pairs that `matching` finds and the average precision of `coco_precision`.
"""
