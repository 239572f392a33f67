"""Where a run's data comes from: readers, the synthetic world, tokenizers, and the normal form on disk (files.py).

Nothing is imported here: ``lodestar.data.files`` and ``lodestar.data.world`` are for processes without transformers
too (the launcher), ``lodestar.data.prepare`` is the data stage.
"""
