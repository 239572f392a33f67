"""Models in training for callers' own algorithms, behind lodestar.v1.TrainingService."""
