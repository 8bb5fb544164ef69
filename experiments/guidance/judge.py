"""Are samples of the class that they were asked for, and at what price? All by held-out examples, no score's own word.

    accuracy     share of the samples to which a support vector machine (RBF kernel), trained on clean training
                 examples and independent of every score and classifier here, gives the class asked for
    distance     sliced-Wasserstein distance between the samples of a class and its held-out examples, in raw units
    spread       distance between two samples of one class, in raw units

the last two as means over the classes. Guidance that is too strong lowers the spread and raises the distance.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data

MOST_EXAMPLES = 10_000
HEADS = ("accuracy", "distance", "spread")


class Judge:
    """The held-out classifier, and the held-out examples of each of the classes asked for.

    Raises:
        InputError: a class with fewer than two training or two held-out examples.
    """

    def __init__(self, data: Data, classes: np.ndarray, each: int) -> None:
        assert data.train_labels is not None and data.held_out_labels is not None
        order = np.random.default_rng(0).permutation(len(data.train))
        chosen, held_out = order[:MOST_EXAMPLES], data.held_out_labels
        self.data, self.classes, known = data, classes, np.isin(held_out, classes)
        self.learned = data.train[chosen], data.train_labels[chosen]
        self.known = data.held_out[known], held_out[known]
        self.real = self._of_each(data.held_out, np.arange(len(held_out)), held_out, len(held_out))
        self.trained = self._of_each(data.train, order, data.train_labels, each)

    @property
    def read(self) -> list[np.ndarray]:
        """All that the figures depend on besides the samples."""
        return [*self.learned, *self.known, self.real, self.trained, self.data.mean, self.data.std]

    @cached_property
    def machine(self) -> Any:
        """The support vector machine, trained where it is first asked."""
        from sklearn.svm import SVC

        x, labels = self.learned
        return SVC(C=10.0).fit(self._seen(x), labels)

    def _of_each(self, x: Any, order: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
        """As many examples of each class as the rarest has, at most ``most``: (classes, m, *event)."""
        found = [order[labels[order] == c][:most] for c in self.classes]
        if (count := min(map(len, found))) < 2:
            rare = int(self.classes[int(np.argmin(list(map(len, found))))])
            word = dict(enumerate(self.data.labels.words if self.data.labels else ())).get(rare, rare)
            raise InputError(f"class {word} of {self.data.name} has {count} example(s) in a part; two are needed")
        return np.stack([x[np.sort(where[:count])] for where in found])

    def _seen(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.data.to_model(x)).reshape(len(x), -1)

    def of(self, key: jax.Array, x: np.ndarray) -> dict[str, Any]:
        """The figures of samples (classes, n, *event) in raw units."""
        predicted = self.machine.predict(self._seen(x.reshape(-1, *x.shape[2:]))).reshape(x.shape[:2])
        right = predicted == self.classes[:, None]
        figures = {"accuracy": float(right.mean()), "accuracy_std_error": _error(right.ravel())}
        return figures | self.compared(key, x) | {"accuracies": right.mean(axis=1).tolist()}

    def compared(self, key: jax.Array, x: np.ndarray) -> dict[str, float]:
        """Distance and spread of examples (classes, n, *event)."""
        pairs = zip(x.astype(np.float32), self.real.astype(np.float32), strict=True)
        distances = [float(ss.evaluation.sliced_wasserstein(key, a, b)) for a, b in pairs]
        flat = x.astype(np.float64).reshape(*x.shape[:2], -1)
        between = [np.linalg.norm(a[:, None] - a[None], axis=-1)[np.triu_indices(len(a), 1)].mean() for a in flat]
        return {"distance": float(np.mean(distances)), "spread": float(np.mean(between))}

    def references(self, key: jax.Array) -> dict[str, Any]:
        """The figures of real examples: accuracy and spread of the held-out ones, distance of training ones to them."""
        held_out, training = self.compared(key, self.real), self.compared(key, self.trained)
        right = self.machine.predict(self._seen(self.known[0])) == self.known[1]
        figures = {"accuracy": float(right.mean()), "accuracy_std_error": _error(right), "examples": len(right)}
        return figures | {"distance": training["distance"], "spread": held_out["spread"]}


def _error(right: np.ndarray) -> float:
    return ss.mean_with_error(jnp.asarray(right, float))[1]
