"""What a reward is made of: scoring models of any sort, rules, functions of one's own, and how they add up."""
