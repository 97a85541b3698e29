"""What prediction and export need beside the network: sources of pictures, tiles, NMS in ONNX.

Imports `engine.errors`, `models` and `data`. Begin with the commands `engine.predict` and `engine.export`.
"""
