"""The first state of a path that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import VP

from scoresde import uniform_grid
from scoresde.solvers import ddim, first_nonfinite, integrate

KEY = jax.random.key(11)


def test_the_first_state_that_is_not_finite_is_told_with_its_time():
    """x stays about where it is under the score -x of N(0, I), until an element of example 1 is lost in a known row."""
    sde, x = VP(), jnp.array([[0.1, 0.2, 0.0], [5.0, 0.3, 0.1], [0.3, 0.1, 0.5]])
    table = ddim(sde, uniform_grid(sde, 10))

    def path(bad, x=x):
        lost = lambda x, t: (t < 0.25) & (x[:, :1] > 1) & (jnp.arange(3) == 1)[None]  # noqa: E731
        return integrate(KEY, lambda x, t: jnp.where(lost(x, t), bad, -x), table, x, trajectory=True)

    broken = path(np.nan)
    found = first_nonfinite(table, broken)
    np.testing.assert_array_equal(found.time, [np.nan, table.times[9], np.nan])
    np.testing.assert_array_equal(found.asked, [np.nan, table.look.t[8], np.nan])
    assert found.message == (
        "1 of 3 examples (first: 1) are not finite: example 1 at t = 0.1 has 1 nan and 0 inf of 3 elements; "
        f"the score was asked at t = 0.2, max |x| was {np.max(np.abs(broken[8, 1])):.3g} before"
    )
    assert "0 nan and 1 inf of 3 elements" in first_nonfinite(table, path(np.inf)).message
    start = first_nonfinite(table, path(0.0, x.at[2].set(jnp.inf)))
    assert start.message.startswith("1 of 3 examples (first: 2)") and start.message.endswith("; as it was given")
    assert start.time[2] == table.times[0] and np.isnan(start.asked[2])
    fine = first_nonfinite(table, path(0.0))
    assert fine.message == "" and np.all(np.isnan(fine.time))
    for wrong in (x, path(0.0)[:-1]):
        with pytest.raises(ValueError, match=r"^path must have shape \(11, B, \*event\), got \("):
            first_nonfinite(table, wrong)
