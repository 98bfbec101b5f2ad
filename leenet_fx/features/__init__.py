"""Features of the frozen backbone, cached for training and calibration."""
