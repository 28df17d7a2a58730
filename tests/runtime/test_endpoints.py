"""The engines of a governor with several pools."""

from __future__ import annotations

import pytest

import concur_agents as ca

ONE, TWO = "http://127.0.0.1:1", "http://127.0.0.1:2"


def test_a_removed_address_can_be_added_again():
    with ca.Governor([ONE, TWO], background=False) as gov:
        gov.remove_pool(TWO)
        gov.add_pool(TWO)
        assert list(gov.addresses) == [ONE, TWO]
        with pytest.raises(ca.ConfigError, match="twice"):
            gov.add_pool(TWO)


def test_the_last_address_stays():
    with ca.Governor([ONE, TWO], background=False) as gov:
        gov.remove_pool(TWO)
        with pytest.raises(ca.ConfigError, match="last address"):
            gov.remove_pool(ONE)


def test_each_rank_is_a_pool():
    with ca.Governor(ONE, ranks=2, background=False) as gov:
        assert list(gov.addresses) == [f"{ONE}#0", f"{ONE}#1"]
        assert [address.rank for address in gov.addresses.values()] == [0, 1]


def test_one_address_is_no_fleet():
    with ca.Governor([ONE], background=False) as gov:
        assert gov.addresses == {}
        with pytest.raises(ca.ConfigError, match="made for one pool"):
            gov.add_pool(TWO)
