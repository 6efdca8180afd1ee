"""Measurements on gradients, along a training or on a finished run, and the paper's theory."""
