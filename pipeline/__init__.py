"""Distributed self-supervised pretraining. The names for use from Python:

    run            the stages of a config, in this process        load_config    a config, checked
    load_model     a trained objective, with all that it learned  load_encoder   its encoder: images in, features out
    embed          features of any images, as Parquet             prepare        an objective and its loader, for a
    Shards         packed images, by id                                          training loop of one's own
    Stream         their files in exact order, for torch          datasource     the same for Ray Data
    Loader         batches of views, from any step on             World          this process, or one of several ranks
    Objective, ObjectiveSettings, Batch, Step                     what a new objective is made of
    Network, NetworkSettings                                      what a new network is made of
    View, ViewSettings                                            what a new view is made of
    PipelineError, ConfigError, DataError                         what goes wrong, in one line, with its exit code

The settings, every one with its unit, default and source, are models in `pipeline.settings`. A name is imported when
it is asked for, so that `import pipeline` imports nothing else.
"""

import importlib
from typing import Any

HOME = {
    "run": "api",
    "load_config": "config:load",
    "load_model": "objectives:load",
    "load_encoder": "evaluation.encoders:load",
    "embed": "evaluation.embed",
    "Shards": "data",
    "Stream": "data",
    "datasource": "data",
    "Loader": "data.loader",
    "prepare": "stages.pretrain",
    "World": "world",
    "Objective": "objectives.base",
    "Batch": "objectives.base",
    "Step": "objectives.base",
    "ObjectiveSettings": "settings.objectives:Objective",
    "View": "views.own",
    "ViewSettings": "settings.data:View",
    "Network": "nets.trunks",
    "NetworkSettings": "settings.nets:Network",
    "PipelineError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
}
"""The module of each name, and after the colon its name there, if that is another."""


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = HOME[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), other or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOME})
