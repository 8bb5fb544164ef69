"""PyTorch's counterparts of our networks, of the package diffusers, timed alone in their process:

    ENVIRONMENT/bin/python experiments/benchmarks/diffusers_peers.py ddpmpp --batch 8 --repeats 5

is what ``experiments.benchmarks.networks`` runs in an environment of its own, which holds torch and diffusers and not
scoresde; see ``one_network.py`` for what is measured and printed. The U-Nets are ``UNet2DModel`` of the same widths,
blocks and levels with attention. It has attention behind every block on the way up, where NCSN++ and DDPM++ have one a
level; its NCSN++ is the one with skips; EDM2 is not in it, and stands beside a ``UNet2DModel`` of ADM's kind.
"""

import argparse
import contextlib
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

sys.modules["torchvision"] = None  # pyright: ignore  # not needed, and one built for another torch stops diffusers
from diffusers import DiTTransformer2DModel, UNet2DModel  # pyright: ignore[reportMissingImports]  # noqa: E402

WARM_UP, LEARNING_RATE = 2, 1e-4


def unet(widths, blocks, attentive, kind="Resnet{}sampleBlock2D", attention="Attn{}Block2D", **options):
    """A U-Net with attention at the levels ``attentive``."""
    kinds = [attention if i in attentive else kind for i in range(len(widths))]
    options = {"norm_eps": 1e-6, "sample_size": 32} | options
    return UNet2DModel(
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=[kind.format("Down") for kind in kinds],
        up_block_types=[kind.format("Up") for kind in reversed(kinds)],
        **options,
    )


SONG: dict[str, Any] = {"downsample_type": "resnet", "upsample_type": "resnet", "attention_head_dim": 256}
ADM: dict[str, Any] = {
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
}
ADM |= {"resnet_time_scale_shift": "scale_shift", "norm_eps": 1e-5}
SKIP: dict[str, Any] = {"kind": "Skip{}Block2D", "attention": "AttnSkip{}Block2D", "time_embedding_type": "fourier"}
SKIP |= {"norm_num_groups": None, "mid_block_scale_factor": 2**0.5, "attention_head_dim": 256}
NETWORKS = {
    "ddpmpp": lambda: unet((128, 256, 256, 256), 4, {1}, **SONG),
    "ncsnpp": lambda: unet((128, 256, 256, 256), 4, {1}, **SKIP),
    "adm_small": lambda: unet((64, 128, 192, 256), 3, {1, 2, 3}, **ADM),
    "edm2_xs": lambda: unet((128, 256, 384, 512), 3, {1, 2}, **ADM),
    "dit_s": lambda: DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, num_layers=12, out_channels=8, sample_size=32, dropout=0.0
    ),
}


def median_ms(call, repeats: int, device: str) -> float:
    taken = []
    for _ in range(WARM_UP + repeats):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 1e3 * float(np.median(taken[WARM_UP:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    flags = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = NETWORKS[flags.name]().to(device)
    transformer = flags.name == "dit_s"
    x = torch.randn(flags.batch, 4 if transformer else 3, 32, 32, device=device)
    t = torch.linspace(1, 50, flags.batch, device=device)
    more = {"class_labels": torch.randint(0, 1000, (flags.batch,), device=device)} if transformer else {}
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    half = flags.dtype == "bf16"

    def output():
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            return network(x, t, **more).sample

    def forward():
        with torch.no_grad():
            output()

    def step():
        optimizer.zero_grad()
        output().float().square().mean().backward()
        optimizer.step()

    network.eval()
    forward_ms = median_ms(forward, flags.repeats, device)
    network.train()
    step_ms = median_ms(step, flags.repeats, device)
    used = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    found = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_ms": forward_ms,
        "step_ms": step_ms,
        "peak_mib": used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
