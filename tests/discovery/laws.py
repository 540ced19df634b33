"""How laws are tried here: the same examples on every machine, and no verdict from a slow one."""

from hypothesis import settings
from hypothesis import strategies as st

law = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
