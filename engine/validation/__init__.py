"""Validation of a network: from predictions to metrics, without Lightning.

Imports `engine.training` for precision and ranks. Begin with `evaluation`; `metrics` computes the figures from the
pairs that `matching` finds, `coco_precision` those of COCO.
"""
