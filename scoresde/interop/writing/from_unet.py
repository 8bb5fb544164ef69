"""A U-Net of this house in diffusers' layout, where it has one.

Its configuration is read off the network's parts, a network is made of it as of any folder of diffusers, and the two
are compared: by the shapes of all parameters, and by what they give for the same parameters and input. So nothing is
written that diffusers would compute otherwise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoresde import nn, precond
from scoresde.interop.projects.diffusers import PREDICTIONS, UNET, assembled, described
from scoresde.interop.projects.discrete import DiscreteVP
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.tensors import flat

TOLERANCE = 1e-4


def from_unet(
    net: nn.UNet, params: nn.Params, sde: DiscreteVP, *, predict: precond.Prediction = precond.noise
) -> Pretrained:
    """A U-Net trained on the steps of a chain, as a score that ``to_diffusers`` can write.

    Args:
        net: the network, for images; ``params`` are used, not its own. It is called with c = k, the step of ``sde``
            (``sde.step(t)``), and its input is x itself, in [-1, 1] where there is no noise.
        params: its parameters, such as an average of them.
        sde: the levels that it was trained on, such as ``scheduler_sde({})``.
        predict: what it predicts: ``precond.noise``, ``data`` or ``velocity``.

    Raises:
        ValueError: one line: the network has no counterpart in diffusers, or ``params`` are not its parameters.
    """
    words: dict[Any, str] = {function: word for word, function in PREDICTIONS.items()}
    if predict not in words or not isinstance(sde, DiscreteVP):
        raise ValueError("from_unet: predict must be precond.noise, data or velocity, and sde a DiscreteVP")
    betas = -np.expm1(-np.diff(np.asarray(sde.integrals), prepend=0.0))
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": words[predict],
    }
    config = unet_config(net)
    network = described(config, False)
    ours, theirs = ({k: jnp.shape(v) for k, v in flat(tree).items()} for tree in (params, network.shapes()))
    if ours != theirs:
        differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise ValueError(
            f"from_unet: no network of diffusers has this layout; these differ: {', '.join(differing[:8])}"
        )
    found = assembled(network, params, sde, config | {"scheduler": scheduler})
    _compare(net, found)
    return found


def _compare(net: nn.UNet, found: Pretrained) -> None:
    """Refuse a network that gives other values than its counterpart for the same random parameters and input."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda v: jnp.asarray(0.1 * rng.standard_normal(v.shape), v.dtype), found.params)
    x, k = jnp.asarray(rng.standard_normal((2, *net.event_shape)), jnp.float32), jnp.array([3.0, 700.0])
    cond = None if found.config is None or not found.config["num_class_embeds"] else jnp.array([0, -1])
    ours = jax.jit(lambda p, x, k: nn.functional(net)[0](p, x, k, cond=cond))(params, x, k)
    theirs = jax.jit(lambda p, x, k: found.apply(p, x, k, cond))(params, x, k)
    error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
    if not error < TOLERANCE:
        raise ValueError(
            f"from_unet: the nearest network of diffusers gives other values (relative difference {error:.2g}): it has "
            "one number of norm groups and one width of attention heads throughout, and sums that are not rescaled"
        )


def unet_config(net: nn.UNet) -> dict[str, Any]:
    """The ``config.json`` of the network of diffusers that is nearest to ``net``.

    Raises:
        ValueError: there is none like it.
    """
    if not isinstance(net, nn.UNet) or len(net.event_shape) != 3 or net.patch != 1 or net.input_frequencies:
        raise ValueError("from_unet: expected a UNet for images (height, width, channels) without patches or waves")
    embedding: Any = net.embedding
    function, shift = embedding.function, 1
    if isinstance(function, functools.partial):
        function, shift = function.func, function.keywords.get("shift", 1)
    layout, given = net.layout, net.conditions.described
    if not layout.embedding_width or function is not nn.transformer or net.output is None or net.norm is None:
        raise ValueError("from_unet: only networks with nn.transformer as embedding, in two layers, have a counterpart")
    if len(given) > 1 or not all(isinstance(d, nn.Classes) for d in given):
        raise ValueError("from_unet: diffusers' U-Nets take classes alone as conditions")
    plain, kind = ("Resnet{}sampleBlock2D", "resnet") if layout.resampling_blocks else ("{}Block2D", "conv")
    levels = [plain if level[0].attention is None else "Attn{}Block2D" for level in net.down]
    return {
        "_class_name": UNET,
        "sample_size": list(net.event_shape[:2]),
        "in_channels": net.event_shape[2],
        "out_channels": _size(net.output.bias),
        "freq_shift": shift,
        "flip_sin_to_cos": True,
        "time_embedding_dim": _size(embedding.linear_2.bias),
        "down_block_types": [level.format("Down") for level in levels],
        "up_block_types": [level.format("Up") for level in reversed(levels)],
        "block_out_channels": [_size(level[0].norm_2.scale) for level in net.down],
        "layers_per_block": len(net.down[0]),
        "downsample_padding": layout.padding or 0,
        "downsample_type": kind,
        "upsample_type": kind,
        "attention_head_dim": _head_width(net),
        "norm_num_groups": net.norm.num_groups,
        "attn_norm_num_groups": net.norm.num_groups,
        "norm_eps": net.norm.epsilon,
        "resnet_time_scale_shift": "scale_shift" if layout.adaptive else "default",
        "add_attention": net.middle[0].attention is not None,
        "num_class_embeds": embedding.vector.kernel.shape[0] if given else None,
    }


def _size(vector: Any) -> int:
    return int(vector.shape[0])


def _head_width(net: nn.UNet) -> int | None:
    """Channels of a head where all are alike, None for one head of all channels."""
    blocks = [*(block for level in net.down for block in level), *net.middle]
    attentions = [(_size(b.norm_2.scale), b.attention.heads) for b in blocks if b.attention is not None]
    widths = {channels // heads for channels, heads in attentions if heads > 1}
    return widths.pop() if widths else None
