"""What exiting at each exit costs: FLOPs, parameters, bytes, seconds."""
