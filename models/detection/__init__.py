"""Computes a loss, or detections, from raw predictions.

Imports `models.kernels` and `models.precision`. Begin with `loss`. `assigner` chooses the anchors of each object,
`boxes` decodes and compares boxes, and `postprocess` makes detections.
"""
