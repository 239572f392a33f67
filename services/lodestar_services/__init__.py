"""The five Lodestar services: policy, reward, reference, learner and rollout."""
