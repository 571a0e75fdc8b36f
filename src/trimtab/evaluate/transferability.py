"""LogME: how well a base's features explain a task's labels, before anything is trained.

You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning"
(arXiv:2102.11005). Of each label's column y of zeros and ones, a Bayesian linear model on the
features F (n, D), with w ~ N(0, I/α) and y ~ N(Fw, I/β), has the evidence

    log p(y | F) = n/2 log β + D/2 log α - n/2 log 2π - β/2 |Fm - y|² - α/2 |m|² - 1/2 log |A|
    A = αI + βFᵀF,   m = β A⁻¹ Fᵀ y

which is made largest over α and β by fixed-point steps. The score is its mean over labels, divided
by n: more is better, and only bases on the same examples can be compared.
"""

from __future__ import annotations

import numpy as np

_STEPS, _ENOUGH = 50, 1e-3


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Of features (n, D) and the indices of their labels (n,)."""
    F = features.astype(np.float64)
    U, singular, _ = np.linalg.svd(F, full_matrices=False)
    classes = np.unique(labels)
    scores = [_evidence(F.shape, U, singular, (labels == c).astype(np.float64)) for c in classes]
    return float(np.mean(scores))


def _evidence(shape: tuple[int, ...], U: np.ndarray, s: np.ndarray, y: np.ndarray) -> float:
    """The largest log evidence of one column, divided by n; in the basis of the singular vectors,
    where A is diagonal."""
    n, D = shape
    z, eigen = U.T @ y, s**2
    outside = float(y @ y - z @ z)  # of y, what no feature reaches
    alpha, beta = 1.0, 1.0
    for _ in range(_STEPS):
        t = alpha / beta
        gamma = float((eigen / (eigen + t)).sum())
        m2 = float((eigen * z**2 / (eigen + t) ** 2).sum())
        residual = float(((t / (eigen + t)) ** 2 * z**2).sum()) + outside
        alpha, beta = gamma / (m2 + 1e-12), (n - gamma) / (residual + 1e-12)
        if abs(alpha / beta - t) <= _ENOUGH * t:
            break
    t = alpha / beta
    m2 = float((eigen * z**2 / (eigen + t) ** 2).sum())
    residual = float(((t / (eigen + t)) ** 2 * z**2).sum()) + outside
    log_det = float(np.log(alpha + beta * eigen).sum()) + (D - len(eigen)) * np.log(alpha)
    evidence = n * np.log(beta) + D * np.log(alpha) - n * np.log(2 * np.pi)
    evidence += -beta * residual - alpha * m2 - log_det
    return float(evidence / 2 / n)
