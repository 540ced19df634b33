"""Attention as a byte: how far a decoded value may be from the model's."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.report.codes import LEVELS, AttentionCode

shares = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).map(torch.tensor)


@given(shares, st.integers(2, 5000))
def test_a_decoded_value_is_within_the_stated_error(values, n_keys):
    code = AttentionCode(n_keys)
    decoded = code.decode(code.encode(values)).double()
    allowed = code.relative_error * (values.double() + 1 / n_keys)
    assert ((decoded - values.double()).abs() <= allowed * (1 + 1e-4) + 1e-7).all()


@given(st.integers(2, 5000))
def test_the_stated_error_is_reached_so_it_is_no_larger_than_need_be(n_keys):
    code = AttentionCode(n_keys)
    values = torch.linspace(0, 1, 20_001)
    off = (code.decode(code.encode(values)).double() - values.double()).abs()
    assert (off / (values.double() + 1 / n_keys)).max() > 0.9 * code.relative_error


@given(st.integers(2, 5000))
def test_codes_survive_decoding_and_keep_their_order(n_keys):
    code = AttentionCode(n_keys)
    codes = torch.arange(LEVELS + 1, dtype=torch.uint8)
    decoded = code.decode(codes)
    assert torch.equal(code.encode(decoded), codes)
    assert (decoded.diff() > 0).all()


def test_none_and_all_of_the_attention_are_exact():
    code = AttentionCode(197)
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(code.decode(code.encode(ends)), ends)


def test_half_precision_may_round_a_share_to_above_one():
    code = AttentionCode(197)
    assert code.encode(torch.tensor([1.002])).item() == LEVELS
