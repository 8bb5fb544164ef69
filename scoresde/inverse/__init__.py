"""Inverse problems: scores and samplers of p(x_0 | y) for a measurement y = A(x_0) + sigma_y n, n standard normal.

By Bayes' rule the score of p_t(x | y) is the score plus grad log p(y | x_t), and

    p(y | x_t) = E[N(y; A(x_0), sigma_y^2 I) | x_t].

If x_0 | x_t were N(D, C), D = E[x_0 | x_t] by Tweedie's formula (``tweedie``), and A linear (elsewhere: its
linearisation at D), this were N(y; A D, V) with V = A C A^T + sigma_y^2 I, whose gradient, V held fixed, is

    grad log p(y | x_t) = J^T A^T V^(-1) (y - A D),     J = dD/dx.

The methods are choices of V. With rho = sigma/alpha,

    dps             V = sigma_y^2 I (C = 0), or its gradient at a length of its own
    reconstruction  V = (rho^2/w + sigma_y^2) I
    pigdm           C = r^2 I, r^2 = sigma_d^2 rho^2/(sigma_d^2 + rho^2), the variance for N(0, sigma_d^2 I) data
    tmpd, mmps      C = (sigma^2/alpha) J, the exact covariance (Tweedie's second formula): as a matrix or its row sums,
                    or inside conjugate gradients of fixed iterations

so pigdm is exact for N(m, sigma_d^2 I), tmpd and mmps for every Gaussian. Two more move D itself, without J:

    replacement     D <- D + A^+ (y - A D): a linear measurement is put into the state, at the noise of its time
    diffpir         D <- argmin |y - A x|^2/sigma_y^2 + lambda |x - D|^2/rho^2, in a sampler of its own noise

and twisted SMC corrects pigdm's proposals by weights: exact as particles and steps grow, for every law. Of a law with
several modes all the others can get the weights of the modes wrong: ``experiments.benchmarks.inverse`` shows how much.

Operators. ``operator`` is a function of arrays (B, *event); ``y`` is like what it returns, or (1, ...) for one
measurement of all examples. Example i of the result depends on example i alone: everything, norms and conjugate
gradients included, is computed example by example. The adjoint is that of ``jax.linear_transpose``.
``ss.inverse.operators`` has the usual ones.

A score's y, and the conditions of its prior (``ss.given``), go with their examples into the solves of single examples
too (``ss.log_likelihood``, ``ss.probability_flow``).
"""

from scoresde.inverse import operators as operators
from scoresde.inverse.samplers import diffpir as diffpir
from scoresde.inverse.samplers import repaint as repaint
from scoresde.inverse.scores import dps as dps
from scoresde.inverse.scores import mmps as mmps
from scoresde.inverse.scores import pigdm as pigdm
from scoresde.inverse.scores import proximal as proximal
from scoresde.inverse.scores import reconstruction as reconstruction
from scoresde.inverse.scores import replacement as replacement
from scoresde.inverse.scores import tmpd as tmpd
from scoresde.inverse.twisted import twisted_particles as twisted_particles
from scoresde.inverse.twisted import twisted_smc as twisted_smc
