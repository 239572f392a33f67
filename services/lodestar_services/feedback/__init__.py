"""The page where people judge, and FeedbackService beside it."""
