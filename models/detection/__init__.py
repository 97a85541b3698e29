"""From raw predictions to a loss, and to detections.

Imports `models.kernels` and `models.precision`. Begin with `loss`: `assigner` chooses the anchors of each
object, `boxes` decodes and compares boxes. `postprocess` makes detections.
"""
