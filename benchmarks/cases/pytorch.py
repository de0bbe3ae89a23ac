"""The larger components as PyTorch's users write them, of the reference's trees as tensors.

Its linear maps keep their kernels as (outputs, inputs), and so do the trees that come here.
"""

import math
from functools import partial

from reference import tree

try:
    import torch
    from torch.nn import functional
except ImportError:  # the extra `peers`: without it nothing here is called
    torch = functional = None

LABELS = {"ignore_index": -100}


def constant(array):
    """What a module would keep in a buffer, on the device; None without PyTorch."""
    if torch is None:
        return None
    return torch.tensor(array, device="cuda" if torch.cuda.is_available() else "cpu")


def linear(params, x):
    return functional.linear(x, params["kernel"], params.get("bias"))


def layer_norm(params, x):
    return functional.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], eps=1e-5)


def rms_norm(params, x):
    return functional.rms_norm(x, x.shape[-1:], params["scale"], eps=1e-6)


def softmax_with_sink(scores, sink):
    """As in Hugging Face's GPT-OSS: one column more, which is dropped."""
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


def attention(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def cross_attention(params, x, memory, *, heads, causal=False):
    q, k, v = (
        linear(params[name], a).unflatten(-1, (heads, -1)).transpose(1, 2)
        for name, a in (("query", x), ("key", memory), ("value", memory))
    )
    context = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return linear(params["out"], context.transpose(1, 2).flatten(2))


def multi_head_attention(params, x, *, heads):
    return cross_attention(params, x, x, heads=heads, causal=True)


def feed_forward(params, x):
    hidden = functional.gelu(linear(params["up"], x), approximate="tanh")
    return linear(params["down"], hidden)


def gated_feed_forward(params, x, *, activation):
    hidden = activation(linear(params["gate"], x)) * linear(params["up"], x)
    return linear(params["down"], hidden)


def pre_norm(params, x, *others, sublayer):
    return x + sublayer(params["sublayer"], layer_norm(params["norm"], x), *others)


def post_norm(params, x, *, sublayer, alpha=1):
    return layer_norm(params["norm"], alpha * x + sublayer(params["sublayer"], x))


def sandwich_norm(params, x, *, sublayer):
    change = sublayer(params["sublayer"], layer_norm(params["norm"], x))
    return x + layer_norm(params["norm_after"], change)


def layer_scale(params, x, *, sublayer):
    return x + params["scale"] * sublayer(params["sublayer"], layer_norm(params["norm"], x))


def transformer_block(params, x, *, heads):
    h = pre_norm(params["attention"], x, sublayer=partial(multi_head_attention, heads=heads))
    return pre_norm(params["feed_forward"], h, sublayer=feed_forward)


def decoder_block(params, x, memory, *, heads):
    h = pre_norm(params["attention"], x, sublayer=partial(multi_head_attention, heads=heads))
    read = partial(cross_attention, heads=heads)
    c = pre_norm(params["cross_attention"], h, memory, sublayer=read)
    return pre_norm(params["feed_forward"], c, sublayer=feed_forward)


def parallel_block(params, x, *, heads):
    n = layer_norm(params["norm"], x)
    read = multi_head_attention(params["attention"], n, heads=heads)
    return x + read + feed_forward(params["feed_forward"], n)


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def alibi(slopes, *, queries, keys):
    at = partial(torch.arange, device=slopes.device)
    return -slopes[:, None, None] * (at(keys) - at(queries)[:, None]).abs()


def t5_bias(params, *, queries, keys, max_distance=128):
    """As in Hugging Face's T5, which computes the buckets at every call."""
    table = params["embedding"]
    count = len(table) // 2
    exact, at = count // 2, partial(torch.arange, device=table.device)
    distance = at(keys) - at(queries)[:, None]
    size = distance.abs()
    log_size = torch.log(size.clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (log_size * (count - exact)).long()).clamp(max=count - 1)
    buckets = torch.where(size < exact, size, far) + count * (distance > 0)
    return functional.embedding(buckets, table).permute(2, 0, 1)


def shaw_attention(params, q, k, v):
    """As in the paper, with a vector for each pair of positions."""
    queries, keys = (torch.arange(a.shape[-2], device=q.device) for a in (q, k))
    furthest = len(params["key"]["embedding"]) // 2
    index = (keys - queries[:, None]).clamp(-furthest, furthest) + furthest
    of_keys, of_values = (
        functional.embedding(index, params[name]["embedding"]) for name in ("key", "value")
    )
    scores = q @ k.mT + torch.einsum("bhtk,tsk->bhts", q, of_keys)
    weights = (scores * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v + torch.einsum("bhts,tsk->bhtk", weights, of_values)


def transformer_xl_attention(params, q, k, v, *, table, future):
    """As in the paper's code; table (S, D): the waves of the distances S - 1 … 0, future (T, S)."""
    heads, queries, keys = q.shape[-3], q.shape[-2], k.shape[-2]
    by_distance = linear(params["position"], table).unflatten(-1, (heads, -1)).transpose(0, 1)
    content = (q + params["content_bias"][:, None]) @ k.mT
    position = (q + params["position_bias"][:, None]) @ by_distance.mT
    padded = functional.pad(position, (1, 0)).reshape(*q.shape[:-2], keys + 1, queries)
    shifted = padded[..., 1:, :].reshape(content.shape)
    scores = ((content + shifted) * q.shape[-1] ** -0.5).masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1) @ v


def patches(x, *, size):
    tiles = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
    return tiles.flatten(3).flatten(1, 2)


def assemble(x, *, size, grid):
    tiles = x.unflatten(-1, (size, size, -1)).unflatten(1, grid).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(1, 2)


def learned_grid_position(params, x, *, grid, to):
    """As Hugging Face's ViT takes an image of another size; one leading token."""
    table = params["embedding"]
    places = table[1:].unflatten(0, grid).permute(2, 0, 1)[None]
    resized = functional.interpolate(places, size=to, mode="bicubic", align_corners=False)
    return x + torch.cat([table[:1], resized[0].flatten(1).T])


def channels_first(x):
    """A view, which PyTorch calls channels_last."""
    return x.permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def clip_loss(images, texts, log_scale):
    cosines = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    scores = log_scale.exp() * cosines
    labels = torch.arange(len(scores), device=scores.device)
    each = (functional.cross_entropy(z, labels) for z in (scores, scores.T))
    return sum(each) / 2


def siglip_loss(images, texts, log_scale, bias):
    cosines = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    signs = 2 * torch.eye(len(images), device=images.device) - 1
    return -functional.logsigmoid(signs * (log_scale.exp() * cosines + bias)).sum() / len(images)


def cross_entropy(logits, labels, **options):
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), **LABELS, **options)


def z_loss(logits, labels):
    kept = labels != -100
    return logits.logsumexp(dim=-1).square()[kept].mean()


def distillation(logits, teacher_logits, *, temperature):
    """As in DistilBERT's code."""
    student = functional.log_softmax(logits.flatten(0, -2) / temperature, dim=-1)
    teacher = functional.softmax(teacher_logits.flatten(0, -2) / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean") * temperature**2


def lora_merge(params, frozen, *, alpha):
    flat = tree.flatten(frozen)
    for path, adapter in params.items():
        a, b = adapter["lora_a"], adapter["lora_b"]
        flat[path] = flat[path] + alpha / a.shape[-1] * (b.T @ a.T)
    return tree.unflatten(flat)
