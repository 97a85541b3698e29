"""Prediction and export: what a trained network is used for.

Imports `engine.run` for checkpoints, `engine.validation` and `engine.report` for drawing. Begin with `predictor`, which
takes pictures from `sources`, may cut them by `tiling`, and hands what it finds to `results`; `export_formats` writes
other programs' files, and `onnx_nms` adds NMS to one.
"""
