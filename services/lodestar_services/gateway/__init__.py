"""OpenAI's HTTP API over lodestar.v1.PolicyService."""
