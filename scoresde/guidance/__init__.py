"""Guidance: functions from scores to a score, so that every solver and the probability flow run what they return.

The weight. Everywhere w = 0 is the unconditional score and w = 1 the conditional one, to the bit; w > 1 extrapolates:

    s_w = (1 - w) s_unconditional + w s_conditional            the score of p_t(x)^(1-w) p_t(x | c)^w up to a constant.

Papers that write s_c + v (s_c - s_u) mean w = 1 + v.

What is a density. Bayes' rule holds at every noise level: grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x),
where p_t(y | x) is that of the *noisy* x. So a mixture of scores weighted by posterior probabilities, and a classifier
of noisy data with w = 1, are exact: the diffusion of the conditional law. A product is not: p_t(x | c)^w p_t(x)^(1-w)
at t_min is the tilted law, but its diffusion is not the same product at other t. A reverse SDE or flow with s_w
therefore ends near, not at, the tilted law; Langevin correctors at each level (``ss.predictor_corrector``) lead there
(Bradley and Nakkiran 2024, "Classifier-free guidance is a predictor-corrector"). The likelihood under a guided score
is that of the law in which its own probability flow ends.

Denoised data. With D = E[x_0 | x_t] = (x + sigma^2 s)/alpha (see ``tweedie``), a change of D by d changes the score by
(alpha/sigma^2) d. Scores need no further factor; noise predictions would need -sigma, D itself sigma^2/alpha.

Conditions. Scores are called as ``score(x, t)``. If a guided score is called with a third argument, the condition of
each example, it hands it to every score that it was made of, except those named ``unconditional``.
"""

from scoresde.guidance.combined import autoguidance as autoguidance
from scoresde.guidance.combined import classifier as classifier
from scoresde.guidance.combined import classifier_free as classifier_free
from scoresde.guidance.combined import classifier_free_batched as classifier_free_batched
from scoresde.guidance.combined import composed as composed
from scoresde.guidance.combined import mixture as mixture
from scoresde.guidance.combined import of_class as of_class
from scoresde.guidance.combined import product as product
from scoresde.guidance.denoised import clipped as clipped
from scoresde.guidance.denoised import dynamically_clipped as dynamically_clipped
from scoresde.guidance.denoised import projected as projected
from scoresde.guidance.denoised import rescaled as rescaled
from scoresde.guidance.denoised import temperature as temperature
from scoresde.guidance.timed import cfg_plus_plus as cfg_plus_plus
from scoresde.guidance.timed import interval as interval
