"""The benchmarks run and print their ratios; the ratios themselves are measured, never asserted."""

import re

from experiments.benchmarks import overhead


def test_overhead_compares_with_the_network_alone(capsys):
    overhead.main(steps=2, turns=1, batch=3)
    out = capsys.readouterr().out
    ratios = dict(re.findall(r"^(\w[\w ]*?) +[\d.]+ ms +([\d.]+) x the network alone$", out, re.MULTILINE))
    assert set(ratios) == {"network and gradient", "training step", "network", "ddim", "euler_maruyama"}
    assert float(ratios["network"]) == float(ratios["network and gradient"]) == 1
    assert all(float(ratio) > 0 for ratio in ratios.values())
