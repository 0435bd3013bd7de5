"""tests.fuzz: a small part of it, and that it counts what a worse reader would do."""

import os
import random
import time

import numpy as np
import pytest

pytest.importorskip("resource", reason="not tested: this system has no limits for processes")

from qhelpers import load_integer_model  # noqa: E402
from tests import fuzz  # noqa: E402
from tests.fuzz_mutations import KINDS, valid_models, write_models  # noqa: E402


def verdicts(rows):
    return [row["verdict"] for row in rows]


def test_no_file_does_harm():
    rows = fuzz.run(seed=0, count=500)
    assert fuzz.faults(rows) == []
    assert len(rows) == 500 and {row["kind"] for row in rows} == {*KINDS}
    assert {*verdicts(rows)} == {*fuzz.GOOD}
    assert sum(row["verdict"] == "refused" for row in rows) > 250


def test_the_valid_models_are_worth_damaging(tmp_path):
    """They have many codes in each layer, and come back from their files."""
    for model, path in zip(valid_models(), write_models(tmp_path)):
        assert np.array_equal(load_integer_model(path)(fuzz.IMAGES), model(fuzz.IMAGES))
        for name, codes in model.each(model.quantize(fuzz.IMAGES)):
            assert len(np.unique(codes)) > 4, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_file_and_only_by_its_seed(kind, tmp_path):
    content = write_models(tmp_path)[0].read_bytes()
    first, again, *others = (KINDS[kind](random.Random(n), content) for n in (0, 0, 1, 2, 3, 4))
    assert first == again
    assert len({content, first, *others}) > 2


def ends():
    os.abort()


def takes_long():
    time.sleep(60)


def takes_memory():
    np.ones(fuzz.MOST_MEMORY // 8 + 2**22)


def raises_another():
    raise KeyError("layers")


HARM = {"1": ends, "3": takes_long, "5": takes_memory, "7": raises_another}
EXPECTED = {1: "crash", 3: "hang", 5: "memory", 7: "error"}


def harmful(path, arithmetic):
    """A reader that does harm with four files, and else what ours does."""
    if path.stem in HARM:
        HARM[path.stem]()
    return load_integer_model(path, arithmetic)


def test_harm_is_counted_and_the_next_file_is_read():
    rows = fuzz.run(0, 9, "tests.test_fuzz:harmful")
    assert [row["index"] for row in rows] == [*range(9)]
    assert {n: row["verdict"] for n, row in enumerate(rows) if n in EXPECTED} == EXPECTED
    assert all(row["verdict"] in fuzz.GOOD for row in rows if row["index"] not in EXPECTED)
    faults = [line for line in fuzz.faults(rows) if line.startswith("file ")]
    assert [line.split(": ")[1] for line in faults] == [*EXPECTED.values()]
    heading, *_, total = fuzz.table(rows).partition("\n\n")[0].splitlines()
    counts = dict(zip(heading.replace("past zip", "past").split(), total.split()[1:]))
    assert all(counts[verdict] == "1" for verdict in fuzz.BAD if verdict != "unnoticed")


def refuses_for_lack_of_memory(path, arithmetic):
    raise ValueError("damaged") from MemoryError()


def is_another_model(path, arithmetic):
    return lambda images: np.ones(3)


def takes_no_images(path, arithmetic):
    return lambda images: images.reshape(5, 5)


def fails_with_images(path, arithmetic):
    return lambda images: images["first"]


@pytest.mark.parametrize(
    "reader, sealed, verdict",
    [
        (refuses_for_lack_of_memory, True, "memory"),
        (is_another_model, True, "other"),
        (is_another_model, False, "unnoticed"),
        (takes_no_images, True, "misfit"),
        (fails_with_images, True, "error"),
    ],
)
def test_verdicts(reader, sealed, verdict):
    assert fuzz.read(reader, None, "fbgemm", np.zeros(3), sealed)[0] == verdict


def test_too_few_past_the_zip_are_a_fault():
    row = {"index": 0, "kind": "truncated", "verdict": "refused", "said": "", "memory": 0}
    rows = [row | {"past": n == 0} for n in range(11)]
    assert fuzz.faults(rows) == ["1 of 11 files got past the zip's checks; at least 10% must"]
    assert fuzz.faults(rows[:10]) == []


def test_the_exit_code_says_whether_there_was_harm(monkeypatch, capsys):
    row = {"kind": "truncated", "said": "", "memory": 0, "past": True}
    for verdict, code in [("refused", 0), ("crash", 1)]:
        monkeypatch.setattr(fuzz, "run", lambda *_, v=verdict: [row | {"index": 0, "verdict": v}])
        monkeypatch.setattr("sys.argv", ["fuzz", "--count", "1"])
        with pytest.raises(SystemExit) as ended:
            fuzz.main()
        assert ended.value.code == code
    assert "file 0 (truncated): crash" in capsys.readouterr().out
