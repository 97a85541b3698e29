"""Appends non-maximum suppression to an exported ONNX graph, with ONNX's own operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.detection.postprocess import NmsConfig

if TYPE_CHECKING:
    import onnx

DETECTIONS = "detections"
"""Name of the output: (N, 7) rows of image, x1, y1, x2, y2, score, class."""

GRAPH = """
<ir_version: 8, opset_import: ["" : {opset}]>
nms (float[batch, channels, anchors] predictions) => (float[n, 7] detections)
<
    int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}},
    int64[1] end = {{2147483647}}, int64[2] box_columns = {{0, 2}}, int64[1] most = {{{max_detections}}},
    float[1] iou = {{{iou!r}}}, float[1] confidence = {{{confidence!r}}}, float[1] half = {{0.5}}
>
{{
    center_boxes_B4A = Slice (predictions, zero, four, one)
    scores_BCA = Slice (predictions, four, end, one)
    center_boxes_BA4 = Transpose <perm = [0, 2, 1]> (center_boxes_B4A)
    centers = Slice (center_boxes_BA4, zero, two, two)
    sizes = Slice (center_boxes_BA4, two, four, two)
    halves = Mul (sizes, half)
    starts = Sub (centers, halves)
    ends = Add (centers, halves)
    boxes_BA4 = Concat <axis = 2> (starts, ends)

    image_class_anchor = NonMaxSuppression (boxes_BA4, scores_BCA, most, iou, confidence)
    image_and_anchor = Gather <axis = 1> (image_class_anchor, box_columns)
    class_column = Gather <axis = 1> (image_class_anchor, one)
    boxes = GatherND (boxes_BA4, image_and_anchor)
    scores = GatherND (scores_BCA, image_class_anchor)
    score_column = Unsqueeze (scores, one)
    image_column = Gather <axis = 1> (image_class_anchor, zero)
    image_numbers = Cast <to = 1> (image_column)
    classes = Cast <to = 1> (class_column)
    detections = Concat <axis = 1> (image_numbers, boxes, score_column, classes)
}}
"""


def append_nms(model: onnx.ModelProto, output: str, nms: NmsConfig) -> onnx.ModelProto:
    """The model with suppression, whose output is `DETECTIONS`.

    Args:
        model: An export of `engine.inference.export_formats.InferenceNetwork`.
        output: The name of its output.
        nms: Limits. ``limit`` is the most detections of each class. A box may have several classes.
    """
    import onnx

    opset = model.opset_import[0].version
    text = GRAPH.format(opset=opset, max_detections=nms.limit, iou=nms.iou, confidence=nms.confidence)
    suppression = onnx.parser.parse_model(text)
    suppression.ir_version = model.ir_version
    return onnx.compose.merge_models(model, suppression, io_map=[(output, "predictions")])
