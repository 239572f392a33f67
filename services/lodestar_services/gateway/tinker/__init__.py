"""The HTTP API of the tinker SDK over lodestar.v1.TrainingService."""
