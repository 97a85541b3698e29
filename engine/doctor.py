"""Check whether this machine is fit for training: ``python -m engine.doctor``.

With the options of ``engine.fit``, such as ``--config FILE``, it also checks the machine, the data set and the weights
for that configuration, and whether its network trains at the recompute level as at level `none`. The exit status is 0,
or 2 if there is a problem. Notes do not change it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from engine.errors import EXIT_STATUS, ConfigError, run_command
from engine.machine.diagnosis import Finding, check_machine, check_needs, needs_of
from engine.machine.inventory import examine_machine
from engine.machine.show import print_findings
from engine.planning.data_section import SYNTHETIC


def check_files(config: Any) -> list[Finding]:
    """Check whether the data set and the weights of a configuration can be used."""
    from engine.run.checkpoint import check_weights  # imports the networks

    root, weights, network = config.data.root, config.model.weights, config.model.network
    findings = []
    if root != SYNTHETIC:
        findings.append(_finding("data set", root, lambda: read_dataset_yaml(root).sources("val")))
    if weights is not None:
        findings.append(_finding("weights", weights, lambda: check_weights(weights, network, "model.weights")))
    return findings


def check_levels(config: Any, architecture: dict[str, Any]) -> Finding:
    """Check whether the network trains at its recompute level as at `none`; ``auto`` may take any level."""
    from engine.machine.devices import device_of  # imports Lightning
    from engine.training.self_test import check_recompute  # imports the networks

    model = config.model
    levels: list[Any] = ["elementwise", "block"] if model.recompute == "auto" else [model.recompute]

    def check() -> None:
        device = device_of(config.trainer)
        for level in levels:
            check_recompute(model.network, architecture, level, model.recompute_layers, model.fused_kernels, device)

    return _finding("recompute", model.network, check, f"trains at {' and '.join(levels)} as at none")


def _finding(what: str, name: str | Path, check: Callable[[], object], well: str = "can be read") -> Finding:
    try:
        check()
    except (ConfigError, DataError) as error:
        return Finding(what, *_evidence_and_remedy(str(error)), "problem")
    return Finding(what, f"{name}: {well}")


def _evidence_and_remedy(message: str) -> tuple[str, str]:
    """Split a message ``what is wrong. What to do.``; in a single sentence the remedy follows the last colon."""
    evidence, *remedy = re.split(r"\. (?=[A-Z])", message, maxsplit=1)
    if remedy:
        return evidence, remedy[0]
    evidence, _, last = message.rpartition(": ")
    return evidence, last


def main(args: list[str] | None = None) -> None:
    """Check this machine, and whether it is fit for a configuration if there is one."""
    machine = examine_machine()
    findings = check_machine(machine)
    if args or (args is None and sys.argv[1:]):
        from engine.command_line.cli import CommandLine  # takes seconds to import; the machine alone does not need it

        cli = CommandLine(args)
        network = cli.starting_network(num_classes=1)
        findings += [*check_needs(machine, needs_of(cli.config, network.stride_px)), *check_files(cli.config)]
        findings.append(check_levels(cli.config, network.architecture))
    print_findings(findings)
    if any(finding.severity == "problem" for finding in findings):
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    run_command(main)
