"""The same GPT in PyTorch, as its users write it: to be compared with, in value and in speed."""

import numpy as np
import torch
from torch.nn import functional

from reference import tree
from reference.training.config import rate
from reference.training.optimizer import DECAYED


class TorchGPT:
    """A GPT with the reference's parameters, on the fused functions that PyTorch has for it.

    params: the tree that `initial_params` gives;  config: GPTConfig, without dropout;  dtype: what
    to compute in where it is not the weights' own, by autocast;  compiled: by torch.compile.
    """

    def __init__(self, params, config, training, *, dtype=None, compiled=False):
        self.config, self.training, self.step = config, training, 0
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self.forward = torch.compile(self.loss) if compiled else self.loss
        # PyTorch keeps the kernels of its linear maps transposed: (outputs, inputs).
        self.params = {
            path: torch.tensor(np.ascontiguousarray(a.T) if path.endswith("kernel") else a)
            .to(self.device)
            .requires_grad_()
            for path, a in tree.flatten(params).items()
        }
        decays = {path: path.split(".")[-1] in DECAYED for path in self.params}
        groups = [
            {
                "params": [p for path, p in self.params.items() if decays[path] == decayed],
                "weight_decay": training.weight_decay * decayed,
            }
            for decayed in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(training.beta1, training.beta2),
            eps=training.epsilon,
            fused=self.device == "cuda",
        )

    def linear(self, name, x):
        return functional.linear(x, self.params[f"{name}.kernel"], self.params[f"{name}.bias"])

    def norm(self, name, x):
        scale, bias = self.params[f"{name}.scale"], self.params[f"{name}.bias"]
        return functional.layer_norm(x, (self.config.width,), scale, bias, eps=1e-5)

    def attention(self, name, x):
        def split(a):
            return a.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

        q, k, v = (split(self.linear(f"{name}.{part}", x)) for part in ("query", "key", "value"))
        context = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linear(f"{name}.out", context.transpose(1, 2).flatten(2))

    def feed_forward(self, name, x):
        hidden = functional.gelu(self.linear(f"{name}.up", x), approximate="tanh")
        return self.linear(f"{name}.down", hidden)

    def loss(self, tokens, labels):
        """The mean cross-entropy of a batch: tensors (B, T)."""
        table = self.params["token.embedding"]
        positions = self.params["position.embedding"][: tokens.shape[1]]
        x = functional.embedding(tokens, table) + positions
        for layer in range(self.config.layers):
            block = f"blocks.{layer}"
            attention, feed_forward = f"{block}.attention", f"{block}.feed_forward"
            x = x + self.attention(f"{attention}.sublayer", self.norm(f"{attention}.norm", x))
            hidden = self.norm(f"{feed_forward}.norm", x)
            x = x + self.feed_forward(f"{feed_forward}.sublayer", hidden)
        logits = functional.linear(self.norm("norm", x), table)[..., : self.config.vocabulary]
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def loss_and_gradients(self, tokens, labels):
        """The loss, with the gradients left in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            loss = self.forward(tokens, labels)
        loss.backward()
        return loss

    def train_step(self, tokens, labels):
        """One step, as `reference.training.loop.train_step`."""
        self.step += 1
        loss = self.loss_and_gradients(tokens, labels)
        torch.nn.utils.clip_grad_norm_(self.params.values(), self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.training)(self.step)
        self.optimizer.step()
        return loss

    def gradient_norm(self):
        """The length of all gradients together."""
        return torch.stack([p.grad.norm() for p in self.params.values()]).norm().item()
