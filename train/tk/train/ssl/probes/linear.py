"""How good features are for a linear classifier: logistic regression on standardised features."""

from __future__ import annotations

import warnings

from tk.runtime.errors import TkError
from tk.train.ssl.probes.features import Features, Labels, check_split

ITERATIONS = 1000


def linear_accuracy(
    train: Features, train_labels: Labels, test: Features, test_labels: Labels
) -> float:
    """Share of questions that a logistic regression gets right.

    Features are brought to mean 0 and deviation 1 (of the references); L2 penalty 1/2 |w|^2 beside
    the summed loss, L-BFGS, as scikit-learn's defaults are, to at most 1000 iterations.

    Args:
        train: (N, D) features of the references, any real type.
        train_labels: (N,) integers from 0, two classes or more.
        test: (M, D) features of the questions.
        test_labels: (M,).

    Returns:
        0..1.

    Raises:
        TkError: shapes that do not fit, or a single class.
        CheckFailed: features that are not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_split(train, train_labels, test, test_labels)
    if train_labels.min() == train_labels.max():
        raise TkError(
            "a linear probe cannot learn from a single class",
            expected="two classes or more",
            found=f"{len(train_labels)} pictures of class {train_labels[0]}",
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        # An untrained network's features may need more; the figure hardly moves any more then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train.astype("float64"), train_labels)
    return float((probe.predict(test.astype("float64")) == test_labels).mean())
