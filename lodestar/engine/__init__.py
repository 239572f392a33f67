"""The generation engine: continuous batching over unmodified Hugging Face models.

Read it in this order: engine.py (one step), scheduler.py, runner.py, sampler.py, then a cache: slabs.py on a CPU,
pages.py and graphs.py on a GPU. trunk.py is what makes a CPU fast. thread.py and front.py put it behind asyncio.
"""
