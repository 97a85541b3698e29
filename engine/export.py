"""Export a trained network: ``python -m engine.export --ckpt_path best.ckpt --format ultralytics``.

The formats are ``ultralytics`` (a ``.pt`` for ``ultralytics.YOLO``), ``onnx``, ``torchscript`` and ``safetensors``.
The averaged weights are exported, in FP32; see docs/export.md.
"""

from __future__ import annotations

from pathlib import Path

from engine.command_line.arguments import CommandParser, path_option
from engine.errors import ConfigError, run_command
from engine.inference.export_formats import SUFFIXES, export
from engine.memory.units import format_bytes
from engine.run.checkpoint import EXAMPLE, load_network
from models.detection.postprocess import NmsConfig


def main(args: list[str] | None = None) -> Path:
    """Export as the command line says; returns the file."""
    parser = CommandParser(prog="python -m engine.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt_path", type=path_option("--ckpt_path"), required=True, help=f"such as {EXAMPLE}; or an Ultralytics .pt"
    )
    parser.add_argument("--format", choices=SUFFIXES, default="ultralytics", help="default: %(default)s")
    parser.add_argument("--output", type=path_option("--output"), help="default: beside the checkpoint, by its name")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--nms", action="store_true", help="onnx: reduce overlapping boxes within the file")
    parser.add_argument("--conf", type=float, default=0.25, help="with --nms: least score (default: %(default)s)")
    parser.add_argument("--iou", type=float, default=NmsConfig.iou, help="with --nms: greatest overlap of two boxes")
    most = "with --nms: boxes of a class in an image (default: %(default)s)"
    parser.add_argument("--max_detections", type=int, default=1000, help=most)
    options = parser.parse_args(args)
    if options.nms and options.format != "onnx":
        raise ConfigError(f"--nms: goes with --format onnx, not {options.format}: leave one of them out")
    loaded = load_network(options.ckpt_path, "--ckpt_path")
    output = options.output or options.ckpt_path.with_suffix(SUFFIXES[options.format])
    if output.exists() and not options.overwrite:
        raise ConfigError(f"--output: {output}: is there already: choose another, or add --overwrite")
    try:
        nms = NmsConfig(options.conf, options.iou, max_detections=options.max_detections) if options.nms else None
    except ValueError as error:
        raise ConfigError(str(error).replace("model.nms.confidence", "--conf").replace("model.nms.", "--")) from error
    export(loaded, options.format, output, nms)
    print(f"{output}: {loaded.name}, {len(loaded.class_names)} classes, {format_bytes(output.stat().st_size)}")
    return output


if __name__ == "__main__":
    run_command(main)
