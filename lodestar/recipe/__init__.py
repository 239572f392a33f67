"""A run is a recipe: stages that take and make artifacts (stage), tied together before anything runs (plan), kept on
disk with what was asked of them (store), and run one after the other wherever work happens (conduct)."""
