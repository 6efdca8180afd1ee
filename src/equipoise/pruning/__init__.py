"""The command `hydra`: prune a trained network, to compare sparse training with."""
