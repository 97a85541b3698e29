"""Memory as a quantity to plan, measure and defend. Knows the models, but neither Lightning nor the training step."""
