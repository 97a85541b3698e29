"""Prediction with a trained network, and its export into files of other programs.

Imports `engine.run` for checkpoints, `engine.validation`, and `engine.report` for drawing. Begin with `predictor`. It
detects in images from `sources`, and cuts large ones with `tiling`. `results` writes the detections. `export_formats`
writes files of other programs, and `onnx_nms` adds NMS to an ONNX file.
"""
