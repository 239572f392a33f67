"""The generation engine: continuous batching over unmodified Hugging Face models.

Read it in this order: engine.py (one step), scheduler.py, runner.py, sampler.py, then a cache: slabs.py on a CPU.
front.py puts it behind asyncio.
"""
