import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.lab.bench.search import best_cap


class Counted:
    """A makespan by cap that notes what was asked."""

    def __init__(self, values: dict[int, float]) -> None:
        self.values = values
        self.asked: list[int] = []

    def __call__(self, cap: int) -> float:
        self.asked.append(cap)
        return self.values[cap]


@given(st.integers(1, 100), st.data())
def test_the_bottom_of_a_single_valley_is_found_exactly(most: int, data: st.DataObject) -> None:
    bottom = data.draw(st.integers(1, most))
    steep = data.draw(st.floats(0.1, 10.0))
    valley = Counted(
        {
            cap: 100.0 + (bottom - cap) * steep if cap < bottom else 100.0 + (cap - bottom)
            for cap in range(1, most + 1)
        }
    )

    best, _ = best_cap(valley, most)

    assert best == bottom


def test_a_second_valley_beyond_a_ridge_is_found() -> None:
    values = {cap: 100.0 + abs(cap - 5) for cap in range(1, 61)}
    values |= {cap: 90.0 + abs(cap - 43) for cap in range(38, 49)}

    best, _ = best_cap(Counted(values), 60)

    assert best == 43


@given(st.integers(1, 80), st.integers(0, 10**6))
def test_no_cap_is_tried_twice_and_the_best_tried_one_wins(most: int, salt: int) -> None:
    rough = Counted({cap: 1.0 + (cap * 7919 + salt) % 101 for cap in range(1, most + 1)})

    best, tried = best_cap(rough, most)

    assert len(rough.asked) == len(set(rough.asked))
    assert set(rough.asked) == set(tried)
    assert tried[best] == min(tried.values())
    assert {1, most} <= set(tried)


@given(st.integers(2, 80), st.floats(1.0, 1000.0), st.integers(0, 10**6))
def test_caps_that_cannot_win_are_not_tried_and_none_of_them_would_have_won(
    most: int, serial_s: float, salt: int
) -> None:
    values = {
        cap: serial_s / cap * (1.0 + ((cap * 7919 + salt) % 13) / 20.0)
        for cap in range(1, most + 1)
    }

    best, tried = best_cap(Counted(values), most, serial_s=serial_s)

    limit = int(serial_s / tried[best])
    assert all(values[cap] >= tried[best] for cap in range(1, limit))
    everything, _ = best_cap(Counted(values), most)
    assert tried[best] == pytest.approx(values[everything]) or len(tried) < most


def test_hopeless_caps_cost_no_run() -> None:
    perfect = Counted({cap: 1000.0 / cap for cap in range(1, 65)})

    best, tried = best_cap(perfect, 64, serial_s=1000.0)

    assert best == 64
    assert list(tried) == [64]


def test_a_coarse_search_tries_its_grid_only() -> None:
    flat = Counted(dict.fromkeys(range(1, 65), 1.0))

    best, tried = best_cap(flat, 64, least=4, ratio=2.0, valleys=0)

    assert list(tried) == [4, 8, 16, 32, 64]
    assert best == 4  # of equals the smallest
