"""Show the content of a data set and its errors: ``python -m engine.inspect --root data.yaml``.

It never writes into the data set. The exit status is 0, or 2 with the message with which training would refuse the
data set.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console

from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.dataset_facts import TRAINING_SPLITS, inspect_dataset
from engine.command_line.arguments import CommandParser, path_option
from engine.errors import ConfigError, run_command
from engine.machine.show import print_findings
from engine.memory.host import available_cores
from engine.report.dataset_findings import findings_of
from engine.report.dataset_tables import print_tables
from models import cache_folder


def main(args: list[str] | None = None) -> None:
    """Inspect a data set."""
    parser = CommandParser(prog="python -m engine.inspect", description=main.__doc__)
    parser.add_argument(
        "--root", type=path_option("--root"), required=True, help="The data.yaml of the data set; only read."
    )
    parser.add_argument(
        "--output", type=path_option("--output"), help="Folder for pictures and inspect.json; made if needed."
    )
    parser.add_argument("--json", action="store_true", help="Print the facts as JSON instead of tables.")
    parser.add_argument("--image_size", type=int, default=640, help="Training size that object sizes are given at.")
    parser.add_argument("--workers", type=int, default=available_cores(), help="Processes that read files.")
    options = parser.parse_args(args)
    if options.image_size < 1:
        raise ConfigError(f"--image_size: {options.image_size}: must be at least 1")
    dataset = read_dataset_yaml(options.root)
    dataset.sources("train")
    facts, indices = inspect_dataset(dataset, options.image_size, cache_folder() / "index", options.workers)
    if options.json:
        json.dump(asdict(facts), sys.stdout, indent=2)
        print()
    else:
        console = Console(markup=False, emoji=False)  # names of classes and files are shown as they are
        print_tables(facts, console)
        print_findings(findings_of(facts), console)
    if options.output:
        from engine.report.dataset_pictures import write_pictures  # matplotlib takes a second

        try:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "inspect.json").write_text(json.dumps(asdict(facts), indent=2), encoding="utf-8")
            files = write_pictures(options.output, facts, indices)
        except OSError as error:
            raise ConfigError(f"--output: {options.output}: cannot be written ({error.strerror})") from error
        print(f"pictures: {', '.join(str(file) for file in files)}", file=sys.stderr)
    for split in TRAINING_SPLITS:
        if split in facts.refusals:
            raise DataError(facts.refusals[split])


if __name__ == "__main__":
    run_command(main)
