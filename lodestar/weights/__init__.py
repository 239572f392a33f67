"""Policy weights on their way from the learner to the policy servers.

port.py says what a source offers; directory.py keeps versions on a disk (the learner's, or one that all share);
grpc.py fetches them from the learner's host; tensors.py writes and verifies them; follower.py keeps a policy server
up to date.
"""
