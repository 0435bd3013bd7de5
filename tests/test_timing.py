"""qhelpers.timing: whose turn it is, and the median, by a clock that the functions move."""

import time

from qhelpers.timing import median_times


def test_they_take_turns_and_the_first_call_is_not_measured(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def taking(name, durations):
        durations = iter(durations)

        def function(argument):
            calls.append((name, argument))
            now[0] += next(durations)

        return function

    functions = {"a": taking("a", [90, 1, 8, 2]), "b": taking("b", [70, 5, 5, 1])}
    assert median_times(functions, "x", rounds=3) == {"a": 2.0, "b": 5.0}
    assert calls == [("a", "x"), ("b", "x")] * 4
