from __future__ import annotations

from dataclasses import replace

from engine.command_line.cli import CommandLine
from engine.machine.diagnosis import LoaderInUse, check_machine, check_needs, diagnose_throughput, needs_of
from engine.machine.inventory import examine_machine


def test_check_machine__no_gpu_is_a_note_not_a_problem() -> None:
    machine = replace(examine_machine(), gpus=[])
    assert "problem" not in {finding.severity for finding in check_machine(machine)}


def test_check_needs__a_gpu_that_is_not_there_is_a_problem() -> None:
    machine = replace(examine_machine(), gpus=[])
    findings = check_needs(machine, needs_of(CommandLine(["--config=configs/component.yaml"]).config))
    problems = [finding for finding in findings if finding.severity == "problem"]
    assert problems and all(finding.remedy for finding in problems)


def test_diagnose_throughput__tells_waiting_from_computing() -> None:
    loader = LoaderInUse(workers=2, cores=8, cache="none", most_workers=7)
    waiting, computing = diagnose_throughput(0.5, loader), diagnose_throughput(0.01, loader)
    assert waiting.severity != "ok" and "workers" in waiting.remedy
    assert computing.severity == "ok"
