"""Read the output of a model with any head."""

import torch


def logits_of(model, ids):
    with torch.no_grad():
        output = model(ids)
    return output.logits if "logits" in output else output.last_hidden_state
