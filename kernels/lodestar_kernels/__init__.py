"""Log-probabilities, packed attention and paged attention: Triton on a GPU, plain torch on a CPU.

Each folder holds `reference.py` (plain torch: the oracle of the tests and the CPU path), the Triton kernel, and
`op.py` (checks, autograd, dispatch). The package needs torch and triton only.

Shape legend, used as suffixes of names throughout: T packed tokens, S keys of one sequence, B sequences, V vocabulary,
H hidden size, N query heads, M key/value heads (N is a multiple of M), D head dimension.
"""
