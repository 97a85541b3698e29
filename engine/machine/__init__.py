"""What this machine has, and what that means for training.

Imports `engine.memory`. Begin with `inventory`, which collects the facts; `diagnosis` turns them into findings with
evidence and remedy, which `show` prints. `devices` says which device a process trains on.
"""
