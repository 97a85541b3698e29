"""What this machine has, and what that means for training.

Imports `engine.memory`. Begin with `inventory`, which collects the facts. `diagnosis` turns them into findings with
evidence and remedy, and `show` prints the findings. `devices` selects the device of a process.
"""
