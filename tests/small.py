"""A run folder in a moment: a small network as it is before training, with its checkpoint, on digits or on points."""

import json

from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from scoresde.checkpoint import folder as checkpoint


def save_run(folder, data="digits", **flags):
    """Write config.json and checkpoint/ as the main job does, and return the configuration, the data and the model."""
    loaded = load(data)
    config = Config.of(data=data, width=16, depth=1, steps=10, workdir=folder, **flags).resolve(loaded)
    model = build(config, loaded)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.flat(), default=str))
    checkpoint.save(folder / "checkpoint", model.init(), {"config": config.training(), "data": loaded.record()})
    return config, loaded, model
