"""The learner: drives a PPO run. Read loop.py first."""
