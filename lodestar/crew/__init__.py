"""Where a run's work happens: this very process (inline), processes of this machine (local), pods (cluster)."""
