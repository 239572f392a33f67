"""A run's figures, samples, options and report in the trackers that people keep them in: ``tracking: [tensorboard]``.

A process beside the run reads what its stages write and tells the trackers. Names are those of metrics.jsonl after the
stage's: ``ppo/score``. Whatever goes wrong there costs a warning, never the run.
"""
