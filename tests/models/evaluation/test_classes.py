"""Scores class by class, by hand and beside scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score, precision_recall_fscore_support

from convoy.models.evaluation.classes import class_scores


def test_scores_of_a_class_come_from_its_row_and_its_column() -> None:
    cat, dog = class_scores(np.array([[3, 1], [2, 4]]), ["cat", "dog"])
    assert (cat.label, cat.support, cat.precision, cat.recall) == ("cat", 4, 3 / 5, 3 / 4)
    assert cat.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert cat.iou == pytest.approx(3 / 6)
    assert (dog.support, dog.precision, dog.recall) == (6, 4 / 5, 4 / 6)


def test_scikit_learn_says_the_same() -> None:
    random = np.random.default_rng(0)
    true, answered = random.integers(0, 6, (2, 300))
    found = class_scores(confusion_matrix(true, answered).astype(np.int64), [str(number) for number in range(6)])
    expected = precision_recall_fscore_support(true, answered)
    rows = [[row.precision, row.recall, row.f1, row.support] for row in found]
    np.testing.assert_allclose(np.array(rows).T, np.array(expected))
    np.testing.assert_allclose([row.iou for row in found], jaccard_score(true, answered, average=None))


def test_what_there_is_nothing_to_measure_on_has_no_score() -> None:
    never_answered, never_there, neither = class_scores(np.array([[0, 2, 0], [0, 0, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert (never_answered.precision, never_answered.recall, never_answered.iou) == (None, 0, 0)
    assert (never_there.precision, never_there.recall) == (0, None)
    assert (neither.precision, neither.recall, neither.f1, neither.iou) == (None, None, None, None)
