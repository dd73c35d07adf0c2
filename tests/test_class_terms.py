"""Terms of classes: what margins see of them, and what their errors do to a mean."""

import numpy as np

from precalloc.class_terms import ClassTerms, design, told_classes

TERMS = ClassTerms((2, 5, 9), (0.5, -1.0, 2.0), (0.04, 0.09, 0.01))
# Reference class, and those of two margins.
CLASSES = np.array([[2, 5, 7], [7, 9, 2], [5, 11, 0]])


def test_a_margin_sees_the_difference_of_its_classes_terms():
    np.testing.assert_allclose(TERMS.of_margins(CLASSES), [[1.5, 0.5], [-2.0, -0.5], [-1.0, -1.0]])
    np.testing.assert_allclose(TERMS.times(3.0).of_margins(CLASSES), 3.0 * TERMS.of_margins(CLASSES))


def test_without_terms_or_classes_nothing_is_added():
    assert ClassTerms().of_margins(CLASSES) == 0.0
    assert TERMS.of_margins(None) == 0.0
    assert ClassTerms().variance_of_mean(np.ones(3), CLASSES) == TERMS.variance_of_mean(np.ones(3), None) == 0.0


def test_the_error_of_a_mean_is_that_of_drawn_terms():
    rng, slope, draws = np.random.default_rng(0), np.array([0.3, -0.8, 0.5]), 20_000
    values = rng.normal(TERMS.value, np.sqrt(TERMS.variance), (draws, 3))
    means = [
        (slope * ClassTerms(TERMS.classes, tuple(v), TERMS.variance).of_margins(CLASSES)[:, 0]).mean() for v in values
    ]
    expected = TERMS.variance_of_mean(slope, CLASSES)
    assert abs(np.var(means) / expected - 1.0) < 4.0 * np.sqrt(2.0 / draws)
    assert np.isclose(TERMS.times(2.0).variance_of_mean(slope, CLASSES), 4.0 * expected)


def test_classes_that_few_examples_tell_of_have_no_column():
    pairs = np.array([[0, 1]] * 3 + [[1, 0]] * 2 + [[0, 3]] * 4)
    told = told_classes(pairs)
    assert told.tolist() == [0, 1]
    np.testing.assert_array_equal(design(pairs, told), [[1, -1]] * 3 + [[-1, 1]] * 2 + [[1, 0]] * 4)
