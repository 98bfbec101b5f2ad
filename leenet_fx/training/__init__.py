"""Training of exits: plans, phases, checkpoints, devices."""
