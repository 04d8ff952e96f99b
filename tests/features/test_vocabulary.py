import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.priors import PriorTable
from features.vocabulary import Vocabulary, revise

RULES = {"admit_min": 2.0, "forget_min": 0.5}
EVIDENCE = st.dictionaries(st.integers(1, 40), st.floats(0.0, 10.0), max_size=30)


def table_of(evidence: dict[int, float]) -> PriorTable:
    keys = np.array(sorted(evidence), np.uint64)
    n = np.array([[0.0, evidence[key]] for key in sorted(evidence)]).reshape(-1, 2)
    empty = PriorTable.empty((10.0, 1000.0), 1)
    return dataclasses.replace(empty, keys=keys, field=np.zeros(len(keys), np.int16), n=n, c=n / 2)


def revised(vocabulary: Vocabulary, evidence: dict[int, float], values_max: int = 1000) -> tuple[Vocabulary, list[int]]:
    vocabulary, source, _ = revise(vocabulary, table_of(evidence), **RULES, values_max=values_max)
    return vocabulary, source.tolist()


@given(st.lists(EVIDENCE, min_size=1, max_size=5))
def test_each_known_value_has_its_own_row_and_keeps_what_was_learnt(steps: list[dict[int, float]]) -> None:
    vocabulary, owners = Vocabulary.empty(), [0]
    for evidence in steps:
        known = set(vocabulary.keys.tolist())
        vocabulary, source = revised(vocabulary, evidence)
        assert set(vocabulary.keys.tolist()) == {
            key for key, n in evidence.items() if n >= (0.5 if key in known else 2.0)
        }
        owners = [owners[s] if s >= 0 else key for s, key in zip(source, [0, *vocabulary.keys.tolist()], strict=True)]
        assert owners == [0, *vocabulary.keys.tolist()]
    assert vocabulary.rows(vocabulary.keys).tolist() == list(range(1, len(vocabulary)))


def test_a_value_enters_at_the_admission_threshold_and_leaves_below_the_other() -> None:
    vocabulary, _ = revised(Vocabulary.empty(), {7: 2.0, 8: 1.9})
    assert vocabulary.keys.tolist() == [7]
    vocabulary, source = revised(vocabulary, {7: 0.5, 8: 2.0})
    assert vocabulary.keys.tolist() == [7, 8]
    assert source == [0, 1, -1]
    vocabulary, source = revised(vocabulary, {7: 0.4, 8: 2.0})
    assert vocabulary.keys.tolist() == [8]
    assert source == [0, 2]


def test_unknown_and_absent_values_share_row_zero() -> None:
    vocabulary, _ = revised(Vocabulary.empty(), {5: 3.0, 9: 3.0})
    assert vocabulary.rows(np.array([[0, 5], [9, 6]], np.uint64)).tolist() == [[0, 1], [2, 0]]
    assert Vocabulary.empty().rows(np.array([5], np.uint64)).tolist() == [0]


@given(EVIDENCE, st.integers(1, 10))
def test_where_too_many_values_want_a_row_those_with_the_most_evidence_have_one(
    evidence: dict[int, float], values_max: int
) -> None:
    vocabulary, _ = revised(Vocabulary.empty(), evidence, values_max)
    wanting = sorted((key for key, n in evidence.items() if n >= 2.0), key=lambda key: (-evidence[key], key))
    assert vocabulary.keys.tolist() == sorted(wanting[:values_max])


def test_it_is_said_how_many_values_the_limit_leaves_without_a_row_and_not_how_many_the_evidence_does() -> None:
    known, *_ = revise(Vocabulary.empty(), table_of({1: 5.0, 2: 4.0, 3: 3.0}), **RULES, values_max=3)
    evidence = table_of({1: 0.1, 2: 4.0, 3: 3.0, 4: 9.0, 5: 2.0, 6: 1.9})  # 1 is forgotten, 6 not admitted
    assert revise(known, evidence, **RULES, values_max=4)[2] == 0
    vocabulary, _, without = revise(known, evidence, **RULES, values_max=2)
    assert (vocabulary.keys.tolist(), without) == ([2, 4], 2)
