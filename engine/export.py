"""Export a trained network: ``python -m engine.export --ckpt_path best.ckpt --format ultralytics``.

The formats are ``ultralytics`` (a ``.pt`` for ``ultralytics.YOLO``), ``onnx``, ``torchscript`` and ``safetensors``.
The file holds the averaged weights in FP32; see docs/export.md.
"""

from __future__ import annotations

from pathlib import Path

from engine.command_line.arguments import CommandParser, add_checkpoint_option, add_nms_options, nms_config, path_option
from engine.errors import ConfigError, run_command
from engine.inference.export_formats import SUFFIXES, export
from engine.memory.units import format_bytes
from engine.run.checkpoint import load_network


def main(args: list[str] | None = None) -> Path:
    """Export as the command line says; return the file."""
    parser = CommandParser(prog="python -m engine.export", description=__doc__.splitlines()[0])
    add_checkpoint_option(parser)
    parser.add_argument("--format", choices=SUFFIXES, default="ultralytics", help="default: %(default)s")
    parser.add_argument("--output", type=path_option("--output"), help="default: beside the checkpoint, with its name")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--nms", action="store_true", help="onnx: suppress overlapping boxes within the file")
    add_nms_options(parser, "with --nms: ")
    options = parser.parse_args(args)
    if options.nms and options.format != "onnx":
        raise ConfigError(f"--nms: goes with --format onnx, not {options.format}: leave one of them out")
    loaded = load_network(options.ckpt_path, "--ckpt_path")
    output = options.output or options.ckpt_path.with_suffix(SUFFIXES[options.format])
    if output.exists() and not options.overwrite:
        raise ConfigError(f"--output: {output}: exists: choose another file, or add --overwrite")
    export(loaded, options.format, output, nms_config(options) if options.nms else None)
    print(f"{output}: {loaded.name}, {len(loaded.class_names)} classes, {format_bytes(output.stat().st_size)}")
    return output


if __name__ == "__main__":
    run_command(main)
