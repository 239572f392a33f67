"""Tickets out, rollouts in: what every stage that samples through workers has in common."""
