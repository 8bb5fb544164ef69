"""The published networks once more, as NumPy loops in float64, with the originals' names and layouts (B, C, H, W).

A state draws each tensor when it is first asked for, so that running a network also makes its weights.
"""

import math

import numpy as np

HALF = math.sqrt(0.5)


class State(dict):
    """Tensors by name, drawn when missing."""

    def __init__(self, seed, prefix=""):
        super().__init__()
        self.rng, self.prefix = np.random.default_rng(seed), prefix

    def tensor(self, name, *shape, scale=None):
        name = self.prefix + name
        if name not in self:
            deviation = scale or 1 / math.sqrt(max(1, math.prod(shape[1:])))
            mean = 1.0 if "orm" in name and name.endswith("weight") else 0.0
            self[name] = (mean + deviation * self.rng.standard_normal(shape)).astype(np.float32)
        return self[name].astype(np.float64)

    def affine(self, name, *shape):
        return self.tensor(f"{name}.weight", *shape), self.tensor(f"{name}.bias", shape[0], scale=0.1)


def silu(x):
    return x / (1 + np.exp(-x))


def conv(x, weight, bias=0.0, stride=1, pad=(1, 1)):
    x = np.pad(x, ((0, 0), (0, 0), pad, pad))
    k = weight.shape[-1]
    n, m = ((s - k) // stride + 1 for s in x.shape[2:])
    y = np.zeros((len(x), len(weight), n, m))
    for i in range(n):
        for j in range(m):
            patch = x[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, :, i, j] = np.tensordot(patch, weight, axes=([1, 2, 3], [1, 2, 3]))
    return y + np.reshape(bias, (-1, 1, 1))


def dense(x, weight, bias=0.0):
    return x @ weight.T + bias


def group_norm(x, weight, bias, groups, epsilon):
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + epsilon)
    return g.reshape(x.shape) * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)


def norm(s, name, x, epsilon=1e-6, least=4):
    channels = x.shape[1]
    return group_norm(x, *s.affine(name, channels), min(channels // least, 32), epsilon)


def filtered(x, taps, up, down, low, high):
    """Zeros between the positions, zeros around, the kernel of ``taps`` (sum up^2), every ``down``-th position."""
    batch, channels, n, m = x.shape
    z = np.zeros((batch, channels, n * up, m * up))
    z[:, :, ::up, ::up] = x
    k = np.outer(taps, taps) / np.sum(taps) ** 2 * up**2
    z = np.pad(z, ((0, 0), (0, 0), (low, high), (low, high)))
    one = conv(z.reshape(-1, 1, *z.shape[2:]), k[None, None], stride=down, pad=(0, 0))
    return one.reshape(batch, channels, *one.shape[2:])


def halved(x, taps):
    return filtered(x, taps, 1, 2, (len(taps) - 1) // 2, (len(taps) - 1) // 2)


def doubled(x, taps):
    return filtered(x, taps, 2, 1, len(taps) // 2, (len(taps) - 1) // 2)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class ScoreSDE:
    """score_sde_pytorch's NCSNpp, and its DDPM, which is the same with other norms."""

    def __init__(self, config, seed=0):
        self.k, self.s = config, State(seed)
        self.s["sigmas"] = np.geomspace(50.0, 0.01, config["num_scales"])
        self.taps = config["fir_kernel"] if config["fir"] else (1, 1)
        self.rescale = HALF if config["skip_rescale"] else 1.0
        self.least = 1 if config["name"] == "ddpm" else 4

    def __call__(self, x, c):
        k, s, nf, self.count = self.k, self.s, self.k["nf"], 0
        fourier = k["embedding_type"] == "fourier"
        if fourier:
            angle = 2 * np.pi * np.log(c)[:, None] * s.tensor(f"{self.name()}.W", nf, scale=2.0)
        else:
            angle = c[:, None] * 10_000 ** (-np.arange(nf // 2) / (nf // 2 - 1))
        temb = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        temb = dense(temb, *s.affine(self.name(), 4 * nf, temb.shape[1]))
        self.temb = dense(silu(temb), *s.affine(self.name(), 4 * nf, 4 * nf))
        h = self.trunk(x if k["centered"] else 2 * x - 1)
        sigma = c if fourier else s["sigmas"][c.astype(int)]
        return h / sigma.reshape(-1, 1, 1, 1) if k["scale_by_sigma"] else h

    def name(self):
        self.count += 1
        return f"all_modules.{self.count - 1}"

    def trunk(self, x):
        k, levels = self.k, range(len(self.k["ch_mult"]))
        widths, pyramid = [k["nf"] * m for m in k["ch_mult"]], x
        skips = [self.conv(self.name(), x, k["nf"])]
        for i in levels:
            for _ in range(k["num_res_blocks"]):
                skips.append(self.attention(self.block(skips[-1], widths[i])))
            if i < levels[-1]:
                h = self.resampled(skips[-1], halved, self.down)
                if k["progressive_input"] == "residual":
                    h = pyramid = self.rescale * (self.down(pyramid, widths[i]) + h)
                elif k["progressive_input"] == "input_skip":
                    pyramid = halved(pyramid, self.taps)
                    seen = self.conv(f"{self.name()}.Conv_0", pyramid, widths[i], 1)
                    h = np.concatenate([seen, h], 1) if k["progressive_combine"] == "cat" else seen + h
                skips.append(h)
        h = self.block(self.attention(self.block(skips[-1], widths[-1]), always=True), widths[-1])
        pyramid, skip = None, k["progressive"] == "output_skip"
        for i in reversed(levels):
            for _ in range(k["num_res_blocks"] + 1):
                h = self.block(np.concatenate([h, skips.pop()], 1), widths[i])
            h = self.attention(h)
            if skip or (k["progressive"] == "residual" and i == levels[-1]):
                p = silu(norm(self.s, self.name(), h, least=self.least))
                p = self.conv(self.name(), p, x.shape[1] if skip else widths[i])
                pyramid = p if pyramid is None else doubled(pyramid, self.taps) + p
            elif k["progressive"] == "residual":
                h = pyramid = self.rescale * (self.up(pyramid, widths[i]) + h)
            h = self.resampled(h, doubled, self.up) if i else h
        if skip:
            return pyramid
        return self.conv("", silu(norm(self.s, self.name(), h, least=self.least)), x.shape[1])

    def conv(self, name, x, width, size=3, **options):
        name = name or self.name()
        return conv(x, *self.s.affine(name, width, x.shape[1], size, size), **{"pad": (size // 2,) * 2, **options})

    def down(self, x, width):
        if not self.k["fir"]:
            return self.conv(f"{self.name()}.Conv_0", x, width, stride=2, pad=(0, 1))
        return self.conv(f"{self.name()}.Conv2d_0", filtered(x, self.taps, 1, 1, 2, 2), width, stride=2, pad=(0, 0))

    def up(self, x, width):
        """With FIR: zeros between, a convolution reaching beyond the borders, then the filter."""
        if not self.k["fir"]:
            return self.conv(f"{self.name()}.Conv_0", doubled(x, (1, 1)), width)
        weight, bias = self.s.affine(f"{self.name()}.Conv2d_0", width, x.shape[1], 3, 3)
        wide = conv(filtered(x, (0, 1, 0), 2, 1, 1, 1), weight, pad=(2, 1))
        return filtered(wide, self.taps, 1, 1, 1, 1) + bias.reshape(-1, 1, 1)

    def resampled(self, x, resample, convolution):
        if self.k["resblock_type"] == "ddpm":
            return convolution(x, x.shape[1])
        return self.block(x, x.shape[1], lambda h: resample(h, self.taps))

    def block(self, x, width, resample=None):
        s, name, ddpm = self.s, self.name(), self.k["resblock_type"] == "ddpm"
        h = silu(norm(s, f"{name}.GroupNorm_0", x, least=self.least))
        changed = x.shape[1] != width or (resample is not None)
        if resample:
            x, h = resample(x), resample(h)
        h = self.conv(f"{name}.Conv_0", h, width)
        h = h + dense(silu(self.temb), *s.affine(f"{name}.Dense_0", width, self.temb.shape[1]))[:, :, None, None]
        h = self.conv(f"{name}.Conv_1", silu(norm(s, f"{name}.GroupNorm_1", h, least=self.least)), width)
        if changed:
            x = self.nin(f"{name}.NIN_0", x, width) if ddpm else self.conv(f"{name}.Conv_2", x, width, 1)
        return self.rescale * (x + h)

    def nin(self, name, x, width):
        w, b = self.s.tensor(f"{name}.W", x.shape[1], width, scale=0.3), self.s.tensor(f"{name}.b", width, scale=0.1)
        return np.einsum("bchw,cd->bdhw", x, w) + b.reshape(-1, 1, 1)

    def attention(self, x, always=False):
        if not (always or x.shape[-1] in self.k["attn_resolutions"]):
            return x
        name, c = self.name(), x.shape[1]
        h = norm(self.s, f"{name}.GroupNorm_0", x, least=self.least)
        q, k, v = (self.nin(f"{name}.NIN_{i}", h, c).reshape(len(x), c, -1) for i in range(3))
        w = softmax(np.einsum("bcq,bck->bqk", q, k) / math.sqrt(c))
        h = self.nin(f"{name}.NIN_3", np.einsum("bqk,bck->bcq", w, v).reshape(x.shape), c)
        return self.rescale * (x + h)


class EDM:
    """EDM's SongUNet and DhariwalUNet."""

    def __init__(self, config, seed=0):
        self.k, self.s, self.adm = config, State(seed, "model."), config["model_type"] == "DhariwalUNet"
        self.taps = config["resample_filter"]

    def __call__(self, x, c, classes=None, labels=None):
        k, s = self.k, self.s
        channels = k["model_channels"] * (1 if self.adm else k["channel_mult_noise"])
        width, n = k["model_channels"] * k["channel_mult_emb"], channels // 2
        if k["embedding_type"] == "fourier":
            angle = c[:, None] * 2 * np.pi * s.tensor("map_noise.freqs", n, scale=2.0)
        else:
            angle = c[:, None] * 10_000 ** (-np.arange(n) / (n - (0 if self.adm else 1)))
        waves = [np.cos(angle), np.sin(angle)]
        e = np.concatenate(waves if self.adm else waves[::-1], axis=1)
        onehot = np.zeros((len(x), k["label_dim"]))
        if classes is not None:
            onehot[classes >= 0, classes[classes >= 0]] = 1
        if k["label_dim"] and not self.adm:
            e = e + dense(onehot * math.sqrt(k["label_dim"]), *s.affine("map_label", channels, k["label_dim"]))
        if k["augment_dim"]:
            weight = s.tensor("map_augment.weight", channels, k["augment_dim"])
            e = e + dense(np.zeros((len(x), k["augment_dim"])) if labels is None else labels, weight)
        e = dense(silu(dense(e, *s.affine("map_layer0", width, channels))), *s.affine("map_layer1", width, width))
        if k["label_dim"] and self.adm:
            e = e + dense(onehot, s.tensor("map_label.weight", width, k["label_dim"]))
        self.e = silu(e)
        return self.trunk(x)

    def trunk(self, x):
        k, levels = self.k, range(len(self.k["channel_mult"]))
        widths = [k["model_channels"] * m for m in k["channel_mult"]]
        names = [f"{k['img_resolution'] >> i}x{k['img_resolution'] >> i}" for i in levels]
        attentive = [(k["img_resolution"] >> i) in k["attn_resolutions"] for i in levels]
        skips, aux = [], x
        h = self.conv(f"enc.{names[0]}_conv", x, widths[0] if self.adm else k["model_channels"])
        skips.append(h)
        for i in levels:
            if i:
                h = self.block(f"enc.{names[i]}_down", h, h.shape[1], resample=halved)
                if k["encoder_type"] == "skip":
                    aux = self.resampled(f"enc.{names[i]}_aux_down", aux, halved)
                    h = h + self.conv(f"enc.{names[i]}_aux_skip", aux, h.shape[1], 1)
                elif k["encoder_type"] == "residual":
                    wide = self.conv(
                        f"enc.{names[i]}_aux_residual", aux, h.shape[1], pad=((len(self.taps) + 1) // 2,) * 2
                    )
                    h = aux = HALF * (h + filtered(wide, self.taps, 1, 2, 0, 0))
                    self.kernel(f"enc.{names[i]}_aux_residual")
                skips.append(h)
            for j in range(k["num_blocks"]):
                h = self.block(f"enc.{names[i]}_block{j}", h, widths[i], attentive[i])
                skips.append(h)
        aux = None
        for i in reversed(levels):
            if i == levels[-1]:
                h = self.block(f"dec.{names[i]}_in1", self.block(f"dec.{names[i]}_in0", h, widths[i], True), widths[i])
            else:
                h = self.block(f"dec.{names[i]}_up", h, h.shape[1], resample=doubled)
            for j in range(k["num_blocks"] + 1):
                attention = attentive[i] and (self.adm or j == k["num_blocks"])
                h = self.block(f"dec.{names[i]}_block{j}", np.concatenate([h, skips.pop()], 1), widths[i], attention)
            if k["decoder_type"] == "skip" or i == 0:
                ends = ("out_norm", "out_conv") if self.adm else [f"dec.{names[i]}_aux_{n}" for n in ("norm", "conv")]
                p = silu(norm(self.s, ends[0], h, 1e-5 if self.adm else 1e-6))
                p = self.conv(ends[1], p, k.get("out_channels", x.shape[1]))
                aux = p if aux is None else self.resampled(f"dec.{names[i]}_aux_up", aux, doubled) + p
        return aux

    def kernel(self, name):
        self.s[f"model.{name}.resample_filter"] = (np.outer(self.taps, self.taps) / np.sum(self.taps) ** 2)[None, None]

    def resampled(self, name, x, resample):
        self.kernel(name)
        return resample(x, self.taps)

    def conv(self, name, x, width, size=3, pad=None):
        return conv(x, *self.s.affine(name, width, x.shape[1], size, size), pad=pad or (size // 2,) * 2)

    def block(self, name, x, width, attention=False, resample=None):
        s, epsilon, rescale = self.s, 1e-5 if self.adm else 1e-6, 1.0 if self.adm else HALF
        h, changed = silu(norm(s, f"{name}.norm0", x, epsilon)), x.shape[1] != width
        if resample:
            h = self.resampled(f"{name}.conv0", h, resample)
            x = self.resampled(f"{name}.skip", x, resample)
        h = self.conv(f"{name}.conv0", h, width)
        m = dense(self.e, *s.affine(f"{name}.affine", width * (2 if self.adm else 1), self.e.shape[1]))[
            :, :, None, None
        ]
        if self.adm:
            h = norm(s, f"{name}.norm1", h, epsilon) * (1 + m[:, :width]) + m[:, width:]
        else:
            h = norm(s, f"{name}.norm1", h + m, epsilon)
        h = self.conv(f"{name}.conv1", silu(h), width)
        if changed or (resample and not self.adm):
            x = self.conv(f"{name}.skip", x, width, 1)
        x = rescale * (x + h)
        heads = (width // 64 if self.adm else 1) if attention else 0
        if not heads:
            return x
        qkv = self.conv(f"{name}.qkv", norm(s, f"{name}.norm2", x, epsilon), 3 * width, 1)
        q, k, v = np.moveaxis(qkv.reshape(len(x), heads, width // heads, 3, -1), 3, 0)
        w = softmax(np.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(width // heads))
        a = np.einsum("bhqk,bhck->bhcq", w, v).reshape(x.shape)
        return rescale * (x + self.conv(f"{name}.proj", a, width, 1))
