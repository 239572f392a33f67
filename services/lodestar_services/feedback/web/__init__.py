"""The pages: work (annotators), lead (leads), and what all requests pass (security)."""
