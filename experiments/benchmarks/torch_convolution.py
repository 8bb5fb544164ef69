"""A convolution's passes in PyTorch, which on a CPU are oneDNN's; run by ``experiments.benchmarks.convolutions``.

    ENVIRONMENT/bin/python experiments/benchmarks/torch_convolution.py --batch 64 --size 28 --channels 64 --repeats 10

prints JSON {layout: {forward, backward, both, in a loop}} in milliseconds; there is no loop to compile, so the last is
one forward and one backward pass after the other.
"""

import argparse
import json
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]


def median_ms(call, repeats: int) -> float:
    taken = []
    for _ in range(2 + repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1e3 * float(np.median(taken[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 64), ("size", 28), ("channels", 64), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    found = {}
    for name, layout in (("torch, NCHW", torch.contiguous_format), ("torch, channels last", torch.channels_last)):
        n, c = flags.size, flags.channels
        x = torch.randn(flags.batch, c, n, n).to(memory_format=layout).requires_grad_()
        w = torch.randn(c, c, 3, 3).to(memory_format=layout).requires_grad_()
        y = torch.nn.functional.conv2d(x, w, padding=1)
        dy = torch.randn_like(y)

        def forward(x=x, w=w):
            with torch.no_grad():
                torch.nn.functional.conv2d(x, w, padding=1)

        def backward(y=y, x=x, w=w, dy=dy):
            torch.autograd.grad(y, (x, w), dy, retain_graph=True)

        values = median_ms(forward, flags.repeats), median_ms(backward, flags.repeats)
        found[name] = {"forward": values[0], "backward": values[1], "both, in a loop": sum(values)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
