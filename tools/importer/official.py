"""The UltraMem authors' trainer: config.yaml and whatever layout its checkpointer wrote.

config.yaml is a TrainConfig; its `model` part is the ModelConfig that config.json of a model folder holds, flat."""
import re
from pathlib import Path

from . import layouts
from .errors import ImportRefused

# What was true of the training run and not of the model.
NOT_OF_THE_MODEL = {"vertical_parallel": False, "mem_parallel_size": 1, "init_device": None}
# Buffers that older versions saved along with the weights; they follow from the configuration.
BUFFERS = ("rotary_emb.inv_freq", "causal_attention_bias", "alibi_attention_bias", "attn_bias")


def _loader(yaml):
    """PyYAML's safe loader, which takes 1e-5 for a number as the trainer's own reader does."""
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
                                 list("-+0123456789."))
    return Loader


def read_config(path):
    try:
        import yaml
    except ImportError:
        raise ImportRefused("reading config.yaml needs PyYAML: install python3-yaml") from None
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(1 << 20)
        config = yaml.load(text, Loader=_loader(yaml))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ImportRefused(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or "d_model" not in model:
        raise ImportRefused(f"{path} has no `model` part with d_model: is it the trainer's config.yaml?")
    return model


def is_one(folder):
    return (Path(folder) / "config.yaml").is_file()


def convert(folder):
    """(description, config.json's object, {name: tensor})."""
    folder = Path(folder)
    model = read_config(folder / "config.yaml")
    parts = model.get("mem_parallel_size") or 1
    if not isinstance(parts, int) or not 1 <= parts <= 65536:
        raise ImportRefused(f"{folder / 'config.yaml'}: mem_parallel_size is {parts!r}")
    name, tensors = layouts.find(folder, parts)
    config = {key: value for key, value in model.items() if key not in NOT_OF_THE_MODEL}
    config.update({key: value for key, value in NOT_OF_THE_MODEL.items() if value is not None})
    kept = {}
    for tensor, value in tensors.items():
        plain = tensor.replace("_fsdp_wrapped_module.", "")
        plain = plain[len("module."):] if plain.startswith("module.") else plain
        if not plain.endswith(BUFFERS):
            kept[plain] = value
    if not any(tensor.startswith("transformer.") for tensor in kept):
        raise ImportRefused(f"{folder}: no tensor is called transformer.*: these are not the trainer's weights")
    sliced = [tensor for tensor, value in kept.items() if parts > 1 and tensor.endswith("values_for_look_up") and
              len(value.shape) == 2 and model.get("mem_vdim") not in (None, value.shape[1]) and
              not tensor.endswith("pre_values_for_look_up")]
    if sliced:
        raise ImportRefused(f"{folder}: {sliced[0]} has {kept[sliced[0]].shape[1]} columns, mem_vdim is "
                            f"{model['mem_vdim']}: the slices of the other ranks are needed (rank_N/model.pt)")
    blocks = {tensor.rsplit(".", 1)[0] for tensor in kept if tensor.endswith(".tucker_core_u") or
              tensor.endswith(".query_norm.weight") and str(model.get("mem_type", "")).startswith("ultramem")}
    for block in sorted({block.removesuffix(".query_norm") for block in blocks}):
        if f"{block}.shuffle_index" not in kept:
            raise ImportRefused(f"{folder} ({name}) has no {block}.shuffle_index: this layout leaves buffers out, and "
                                f"without it nobody knows which row is whose; save the model with another "
                                f"checkpointer")
    return f"the UltraMem trainer's checkpoint ({name})", config, kept
