"""How matplotlib's figures look in the notebooks: ``use()`` once, and these colours, those of ``panels`` among them."""

import matplotlib.pyplot as plt
from cycler import cycler

from experiments.figures.panels import EXACT as ORANGE
from experiments.figures.panels import INK
from experiments.figures.panels import SAMPLE as BLUE

GREEN, PURPLE, SKY, GREY = "#3f8f63", "#8d5a97", "#7aa6d8", "#8a94a0"
COLOURS = BLUE, ORANGE, GREEN, PURPLE, SKY, GREY


def use() -> None:
    """Set matplotlib's defaults: quiet axes, the house's ink and colours, text that can be read in a notebook."""
    plt.rcParams |= {
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10.5,
        "figure.dpi": 110,
        "font.size": 9.5,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
