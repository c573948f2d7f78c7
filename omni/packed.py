"""Packed weights: the layouts in which a CPU multiplies fastest, as they are or in eight or four bits.

plain  bfloat16 or float32 in oneDNN's blocked layout: the same numbers; with one row two to four times as fast as
       torch's own linear.
rows   the weight as it is, row after row, where compiled kernels are to read it.
int8   a scale for each output row, symmetric, and in bfloat16: products in that type then meet no other. A few rows
       take torch's int8 kernel; for many the weights are unpacked, some output rows at a time, into a scratch of x's
       dtype.
int4   codes with a scale and a zero for each group of 64 (else 32) inputs. A few rows take torch's int4 kernel; for
       many the codes are unpacked likewise, into bfloat16.

On a processor that is slow in half precision (`omni.precision`) products of many rows are float32's, and weights in
bfloat16 stay row after row: oneDNN has no layout for them there.

In int4 a model's towers and their projectors take int8: they are few of its bytes, and their rounding is what its
answers suffer from (`form_of`). A packed model reads and writes; it is not trained. `dense` gives each weight back, in
four and eight bits as rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from omni.attention import Attention
from omni.backbone import Block
from omni.identity import Origin, places
from omni.kernels import mix_experts
from omni.mamba import Mamba
from omni.moe import MLP, Experts, MoE, Router, bias_of
from omni.ops import clamped_swiglu, relu2
from omni.precision import AVX2, linear, multiplied_in
from omni.products import Matrix
from omni.strips import Laid, mixed

Format = Literal["int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)
CAPABILITY = torch.backends.cpu.get_cpu_capability()
BLOCK = 64 if CAPABILITY == "AVX512" else 32  # output rows that torch's int4 layout puts together
HALVES = CAPABILITY in ("AVX512", "AVX2")  # a byte holds rows half a block apart; else neighbours
FILLED = 64  # rows are filled up to a multiple of this
GROUPS = (64, 32)  # inputs that share a scale, the first that divides
FEW = 32 if AVX2 else 16  # rows up to which the int4 kernel is faster than unpacking
FEW_MIXED = 16  # tokens up to which compiled experts take each alone
FEW_EIGHTS = 8  # and the int8 kernel, and a product in slow half precision
LANES = 16  # inputs that the int8 kernel takes at a time; it reads beyond a row that they do not divide
BIASES = ("up_bias", "gate_bias", "down_bias")
STACKS = ("up_proj", "gate_proj", "down_proj")
TOWERS = ("vision", "project_vision", "audio", "project_audio")  # parts of a model that are never in four bits
ALIGNED = 32  # bytes, of the first input that the int8 kernel takes
UNPACKED = 2**22  # weights unpacked at a time
UNPACKED_FOUR = 2**20  # of four bits
BY_BLOCK = 128  # rows up to which float32 is multiplied block by block of four bits, as they were unpacked
NIBBLES = 0x0F0F0F0F0F0F0F0F  # every second code of eight bytes
FEW_TOKENS, SMALL = 8, 2**22  # tokens for which experts of so many bytes in all are taken as one matrix


class Plain:
    """The weight itself in oneDNN's blocked layout."""

    def __init__(self, weight: Float[Tensor, "rows width"]) -> None:
        self.rows, self.width = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.nbytes = weight.nbytes

    def __reduce__(self) -> tuple[type[Plain], tuple[Tensor]]:
        """Copied and pickled as it was: torch can do neither with the layout."""
        return Plain, (self.dense(),)

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """As `F.linear`."""
        return _POINTWISE(x, self._packed, bias, "none", [], "")

    def relu2(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """Squared ReLU of `linear`, a pass fewer."""
        out = _POINTWISE(x, self._packed, bias, "relu", [], "")
        return out.mul_(out)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """The same numbers again."""
        whole = self._packed.to_dense()
        return whole if dtype is None else whole.to(dtype)


class Rows:
    """The weight itself, row after row: for `omni.compiled`, whose kernels read it so, and in slow half precision."""

    def __init__(self, weight: Float[Tensor, "rows width"]) -> None:
        self.rows, self.width = weight.shape
        self.weight = weight
        self.nbytes = weight.nbytes

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """As `F.linear`; many rows in slow half precision as float32, and x may be in that."""
        kind = multiplied_in(x.dtype)
        if x.dtype == self.weight.dtype and (kind == x.dtype or len(x) <= FEW_EIGHTS):
            return linear(x, self.weight, bias)
        parts = (part.to(kind) for part in self.weight.split(max(1, UNPACKED // self.width)))
        return _by_parts(x, parts, bias, kind)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """The same numbers again."""
        return self.weight if dtype is None else self.weight.to(dtype)


class Eight:
    """int8 with a scale for each row."""

    def __init__(self, codes: Int8[Tensor, "rows width"], scale: Float[Tensor, " rows"]) -> None:
        self.rows, self.width = codes.shape
        self.codes, self.scale = codes, scale
        self.nbytes = codes.nbytes + scale.nbytes

    @classmethod
    def of(cls, weight: Float[Tensor, "rows width"]) -> Eight:
        """See `eight`."""
        return cls(*eight(weight))

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """A few rows in bfloat16, whatever x is in; many times the weights as unpacked into x's dtype."""
        if len(x) <= FEW_EIGHTS and self.width % LANES == 0:
            narrow = x.bfloat16().contiguous()
            if narrow.data_ptr() % ALIGNED:  # the kernel ends the process at an address in between
                narrow = narrow.clone()
            out = _EIGHT(narrow, self.codes, self.scale)
            return (out if bias is None else out.add_(bias)).to(x.dtype)
        most, kind = max(1, UNPACKED // self.width), multiplied_in(x.dtype)
        unpacked = zip(self.codes.split(most), self.scale.to(kind)[:, None].split(most), strict=True)
        return _by_parts(x, (part.to(kind).mul_(fine) for part, fine in unpacked), bias, kind)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """code * scale."""
        return (self.codes.float() * self.scale.float()[:, None]).to(dtype or torch.float32)


def eight(weight: Float[Tensor, "*stack rows width"]) -> tuple[Int8[Tensor, "*stack rows width"], Tensor]:
    """Codes and a scale for each row: its largest magnitude / 127 in bfloat16, rounding to nearest."""
    weight = weight.float().contiguous()
    scale = weight.abs().amax(-1).div_(127).clamp_min_(torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8), scale


class Four:
    """int4 in torch's layout for the CPU; rows are filled up to whole blocks."""

    def __init__(
        self, packed: UInt8[Tensor, "filled half"], scales: Float[Tensor, "groups filled 2"], rows: int, width: int
    ) -> None:
        self.rows, self.width = rows, width
        self.packed, self.scales = packed, scales
        self.group = width // len(scales)
        self.nbytes = packed.nbytes + scales.nbytes

    @classmethod
    def of(cls, weight: Float[Tensor, "rows width"]) -> Four:
        """Each group's codes 0 to 15 stand for its least to its largest value, evenly."""
        rows, width = weight.shape
        group = next(size for size in GROUPS if width % size == 0)
        weight = F.pad(weight.float(), (0, 0, 0, -rows % FILLED))
        grouped = weight.view(len(weight), -1, group)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = ((high - low) / 15).clamp_min(1e-30).bfloat16()
        zero = (low + 8 * scale.float()).bfloat16()
        codes = ((grouped - zero.float()[..., None]) / scale.float()[..., None]).round_().add_(8).clamp_(0, 15)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int().view(len(weight), width), 1)
        return cls(packed, torch.stack((scale, zero), -1).transpose(0, 1).contiguous(), rows, width)

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """In bfloat16, whatever x is in; many rows in float32 where that is slow."""
        if len(x) <= FEW:
            out = _FOUR(x.bfloat16().contiguous(), self.packed, self.group, self.scales)[:, : self.rows]
        else:
            kind = multiplied_in(torch.bfloat16)
            narrow = x.to(kind)
            if AVX2 and len(x) <= BY_BLOCK:
                products = torch.cat([narrow @ part for part in self._unpacked(kind)])
                out = products.transpose(0, 1).flatten(1)[:, : self.rows]
            else:
                parts = (part.transpose(0, 1).flatten(1) for part in self._unpacked(kind))
                out = torch.cat([narrow @ part for part in parts], 1)[:, : self.rows]
        return (out if bias is None else out + bias).to(x.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """(code - 8) * scale + zero."""
        parts = self._unpacked(dtype or torch.bfloat16)
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])[: self.rows]

    def _unpacked(self, dtype: torch.dtype) -> Iterator[Float[Tensor, "blocks width block"]]:
        """Some blocks of output rows at a time, each transposed. Where a byte holds rows half a block apart,
        eight bytes are parted at once.
        """
        blocks = self.packed.view(-1, self.width, BLOCK // 2)
        words, mask = (blocks.view(torch.int64), NIBBLES) if HALVES else (blocks, 15)
        # (blocks, groups, 1, block, 2); as they lie, strided, they would take eight times as long
        scales = self.scales.view(len(self.scales), -1, BLOCK, 2).transpose(0, 1)[:, :, None]
        scale, zero = (scales[..., i].contiguous().to(dtype) for i in range(2))
        if wide := dtype == torch.float32:
            zero -= 8 * scale  # to 2**-24 of it
        most = max(1, UNPACKED_FOUR // (BLOCK * self.width))
        for start in range(0, len(blocks), most):
            at = slice(start, start + most)
            part = words[at]
            codes = part.new_empty(*part.shape[:2], *((2, part.shape[2]) if HALVES else (part.shape[2], 2)))
            low, high = codes.unbind(-2 if HALVES else -1)
            torch.bitwise_and(part, mask, out=low)
            torch.bitwise_and(part >> 4, mask, out=high)
            values = codes.view(torch.int8).view(-1, len(self.scales), self.group, BLOCK)
            values = (values if wide else values.sub_(8)).to(dtype)
            yield torch.addcmul(zero[at], values, scale[at], out=values).flatten(1, 2)


def _by_parts(
    x: Float[Tensor, "tokens width"],
    parts: Iterator[Float[Tensor, "part width"]],
    bias: Tensor | None,
    kind: torch.dtype,
) -> Float[Tensor, "tokens rows"]:
    """As `F.linear`, by a weight whose parts are made in a dtype, one after the other."""
    wide = x.to(kind)
    made = [linear(wide, part) for part in parts]
    out = made[0] if len(made) == 1 else torch.cat(made, 1)
    return (out if bias is None else out.add_(bias)).to(x.dtype)


_POINTWISE = torch.ops.mkldnn._linear_pointwise.default
_EIGHT = torch.ops.aten._weight_int8pack_mm.default
_FOUR = torch.ops.aten._weight_int4pack_mm_for_cpu.default


Weight = Plain | Rows | Eight | Four | Laid


def packed(weight: Float[Tensor, "rows width"], form: Format | None) -> Weight:
    """A weight in a format; int8 where int4's groups do not divide its width."""
    if form is None:
        return Plain(weight) if multiplied_in(weight.dtype) == weight.dtype else Rows(weight.contiguous())
    if form == "int4" and any(weight.shape[1] % size == 0 for size in GROUPS):
        return Four.of(weight)
    return Eight.of(weight)


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed weight.

    origin: of what it was packed from, by its name in `nn.Linear`. one: a compiled kernel for one row, where there is
    one.
    """

    bias: Tensor | None
    one: Callable[[Tensor], Tensor] | None = None

    def __init__(self, weight: Weight, bias: Tensor | None, origin: Origin) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.rows, weight.width
        self.packed = weight
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self.origin = {"weight": origin}

    @classmethod
    def of(
        cls, weight: Float[Tensor, "rows width"], bias: Tensor | None, form: Format | None, rows: bool = False
    ) -> PackedLinear:
        """From a weight as it was; rows: in no format, it stays row after row."""
        made = Rows(weight.detach()) if form is None and rows else packed(weight.detach(), form)
        return cls(made, bias, Origin.of(weight, form))

    def forward(self, x: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens rows"]:
        """As `nn.Linear`."""
        if self.one is not None and x.ndim == 2 and len(x) == 1:
            return self.one(x)
        if x.ndim == 2:
            return self.packed.linear(x, self.bias)
        return self.packed.linear(x.flatten(0, -2), self.bias).unflatten(0, x.shape[:-1])


class Stack:
    """One matrix of each expert, packed; origin: of what they were packed from.

    whole, scales: the matrices or their codes in one tensor, an expert behind the other, and the codes' scales; None
    where the weights lie in oneDNN's layout.
    """

    def __init__(
        self, weights: Sequence[Weight], origin: Origin, whole: Tensor | None = None, scales: Tensor | None = None
    ) -> None:
        self.weights, self.origin, self.whole, self.scales = list(weights), origin, whole, scales

    @property
    def matrix(self) -> Matrix | None:
        """All of them as one, for compiled kernels; None where the weights lie in oneDNN's layout."""
        if self.whole is None:
            return None
        return Matrix(self.whole, self.scales, None, self.weights[0].rows)

    @classmethod
    def of(cls, weights: Float[Tensor, "experts rows width"], form: Format | None, rows: bool = False) -> Stack:
        """From weights as they were; rows: in no format, they stay row after row."""
        origin, weights = Origin.of(weights, form), weights.detach()
        if form == "int8":
            codes, scales = eight(weights)
            return cls.of_codes(codes, scales, weights.shape[1], weights.shape[2], origin)
        if form is None and rows:
            return cls([Rows(weight) for weight in weights], origin, weights)
        return cls.joined([packed(weight, form) for weight in weights], origin)

    @classmethod
    def joined(cls, weights: Sequence[Weight], origin: Origin) -> Stack:
        """Of packed ones of one kind; codes become one tensor."""
        codes = [w.codes if isinstance(w, Eight) else w.packed for w in weights if isinstance(w, Eight | Four)]
        if not codes:
            return cls(weights, origin)
        scales = [w.scale if isinstance(w, Eight) else w.scales for w in weights if isinstance(w, Eight | Four)]
        return cls.of_codes(torch.stack(codes), torch.stack(scales), weights[0].rows, weights[0].width, origin)

    @classmethod
    def of_codes(cls, codes: Tensor, scales: Tensor, rows: int, width: int, origin: Origin) -> Stack:
        """In eight bits or in four, an expert behind the other."""
        made: list[Weight] = [
            Four(code, scale, rows, width) if codes.dtype == torch.uint8 else Eight(code, scale)
            for code, scale in zip(codes, scales, strict=True)
        ]
        return cls(made, origin, codes, scales)


class Abreast:
    """All experts of a small mixture as one feed-forward block, for a few tokens: those that were not chosen have no
    share. Their arithmetic costs less than to sort tokens and to call each expert.
    """

    def __init__(self, up: Float[Tensor, "experts hidden width"], down: Float[Tensor, "experts width hidden"]) -> None:
        self.experts = len(up)
        self.up = packed(up.flatten(0, 1), None)
        self.down = packed(down.transpose(0, 1).flatten(1), None)

    def mix(self, x: Float[Tensor, "tokens width"], chosen: Int[Tensor, "tokens top_k"], weights: Tensor) -> Tensor:
        """As `Experts.mix`."""
        shares = x.new_zeros(len(x), self.experts, 1).scatter_(1, chosen[..., None], weights.to(x.dtype)[..., None])
        hidden = relu2(self.up.linear(x, None)).view(len(x), self.experts, -1)
        hidden = torch.where(shares != 0, hidden * shares, 0)  # one that was not chosen may have overflowed
        return self.down.linear(hidden.flatten(1), None)


class PackedExperts(nn.Module):
    """`Experts` with packed weights. stacks, biases: by the names that `Experts` has them under.

    abreast: the same weights once more, where they are small and lie as they were.
    """

    abreast: Abreast | None = None

    up_bias: Tensor | None
    gate_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, stacks: dict[str, Stack], biases: dict[str, Tensor | None], clamp: float | None) -> None:
        super().__init__()
        self.clamp, self.stacks = clamp, stacks
        self.origin = {name: stack.origin for name, stack in stacks.items()}
        self._lay()
        for name in BIASES:
            bias = biases.get(name)
            self.register_parameter(name, None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    def of(cls, experts: Experts, form: Format | None, rows: bool = False) -> PackedExperts:
        """From plain ones; rows: in no format, they stay row after row."""
        stacks = {name: Stack.of(w, form, rows) for name in STACKS if (w := getattr(experts, name)) is not None}
        biases = {name: getattr(experts, name) for name in BIASES}
        made = cls(stacks, {name: None if b is None else b.detach() for name, b in biases.items()}, experts.clamp)
        plain = form is None and made.gate is None and made.up_bias is None
        if plain and experts.up_proj.nbytes + experts.down_proj.nbytes <= SMALL:
            made.abreast = Abreast(experts.up_proj.detach(), experts.down_proj.detach())
        return made

    def _lay(self) -> None:
        """The stacks' weights under their own names."""
        self.up, self.down = self.stacks["up_proj"].weights, self.stacks["down_proj"].weights
        self.gate = self.stacks["gate_proj"].weights if "gate_proj" in self.stacks else None

    def lay(self, name: str, stack: Stack) -> None:
        """The same weights of this name in another layout."""
        self.stacks[name] = stack
        self._lay()

    def mix(
        self, x: Float[Tensor, "tokens width"], chosen: Int[Tensor, "tokens top_k"], weights: Tensor
    ) -> Float[Tensor, "tokens width"]:
        """As `Experts`; a single token's experts are taken together."""
        if self.abreast is not None and len(x) <= FEW_TOKENS:
            return self.abreast.mix(x, chosen, weights)
        plain = self.gate is None and self.up_bias is None
        if plain and isinstance(self.up[0], Laid) and len(x) <= FEW_MIXED:
            up, down = self.stacks["up_proj"].matrix, self.stacks["down_proj"].matrix
            assert up is not None
            assert down is not None
            return mixed(x, chosen, weights, up, down)
        if len(x) > 1 or not plain:
            return mix_experts(x, chosen, weights, self)
        numbers = chosen[0].tolist()
        hidden = relu2(torch.cat([self.up[number].linear(x, None) for number in numbers]))
        downs = (self.down[number] for number in numbers)
        results = torch.cat([down.linear(row, None) for down, row in zip(downs, hidden[:, None], strict=True)])
        return (weights.float() @ results.float()).to(x.dtype)

    def forward(self, expert: int, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """As `Experts`."""
        up, bias = self.up[expert], bias_of(self.up_bias, expert)
        if self.gate is None:
            hidden = up.relu2(x, bias) if isinstance(up, Plain) else relu2(up.linear(x, bias))
        else:
            hidden = up.linear(x, bias)
            gate = self.gate[expert].linear(x, bias_of(self.gate_bias, expert))
            hidden = F.silu(gate) * hidden if self.clamp is None else clamped_swiglu(gate, hidden, self.clamp)
        return self.down[expert].linear(hidden, bias_of(self.down_bias, expert))


def check(form: str | None, device: torch.device) -> None:
    """Raise ValueError for a format that is not known, and off the CPU."""
    if form not in (None, *FORMATS):
        raise ValueError(f"pack: format {form!r} came; want one of {', '.join(FORMATS)}, or None")
    if device.type != "cpu":
        raise ValueError(f"pack: a model on {device} came; packed weights are the CPU's, load it with device='cpu'")


def packs(module: nn.Module, leaf: str) -> bool:
    """Whether a module's tensor of this name is one that gets packed."""
    return (isinstance(module, nn.Linear) and leaf == "weight") or (isinstance(module, Experts) and leaf in STACKS)


def form_of(path: str, form: Format | None) -> Format | None:
    """The format of a module at this path in a model that is packed in `form`."""
    return "int8" if form == "int4" and path.partition(".")[0] in TOWERS else form


def pack(model: nn.Module, form: Format | None = None, rows: bool = False) -> None:
    """Pack every linear and all experts of a model, in place, one after the other, each in the format of its part.

    rows: in no format, what `omni.compiled` reads stays row after row.

    Raises ValueError for a format that is not known, and off the CPU.
    """
    check(form, next(model.parameters()).device)
    for path, module in model.named_modules():
        for name, child in module.named_children():
            mine = form_of(f"{path}.{name}".lstrip("."), form)
            if isinstance(child, nn.Linear):
                stays = rows and isinstance(module, Mamba | Attention | MoE | MLP)
                setattr(module, name, PackedLinear.of(child.weight, child.bias, mine, stays))
            elif isinstance(child, Experts):
                setattr(module, name, PackedExperts.of(child, mine, rows))
    widen(model)


def check_change(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError where a model is packed and all its tensors are to change their dtype or device: packed weights
    would stay as they are.
    """
    if not any(isinstance(module, PackedLinear | PackedExperts) for module in model.modules()):
        return
    for dtype in (torch.float32, torch.bfloat16):
        asked = change(torch.empty(0, dtype=dtype))
        if (asked.dtype, asked.device.type) != (dtype, "cpu"):
            raise ValueError(
                f"pack: a packed model was to become {asked.dtype} on {asked.device.type}; its weights stay as they "
                "are, so load it anew with dtype= or device="
            )


def dense(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that a model's packed modules were made of, by their names in a plain model, one at a time.

    Raises ValueError where they were rounded to int8 or int4.
    """
    for prefix, module in model.named_modules():
        if not isinstance(module, PackedLinear | PackedExperts):
            continue
        if any(origin.form for origin in module.origin.values()):
            raise ValueError("save_pretrained: a quantised model came; load it without quantize, and save that")
        if isinstance(module, PackedLinear):
            yield f"{prefix}.weight", module.packed.dense()
        else:
            for name, weights in zip(STACKS, (module.up, module.gate, module.down), strict=True):
                if weights is not None:
                    yield f"{prefix}.{name}", torch.stack([weight.dense() for weight in weights])


def rounded(model: nn.Module) -> float:
    """How far int8 or int4 took a model's weights from what they were: the root mean square of the difference over that
    of the weights; 0 where nothing was rounded. An estimate from the values that are kept of each (`Origin`).
    """
    off = total = 0.0
    for module in model.modules():
        if not isinstance(module, PackedLinear | PackedExperts):
            continue
        for name, origin in module.origin.items():
            if not origin.form:
                continue
            weights = [module.packed] if isinstance(module, PackedLinear) else module.stacks[name].weights
            at, size = places(origin.shape), math.prod(origin.shape)
            number, within = at // (size // len(weights)), at % (size // len(weights))
            parts = [weight.dense(torch.float32).flatten()[within[number == i]] for i, weight in enumerate(weights)]
            share = size / len(at)
            off += share * float((torch.cat(parts) - origin.values).double().square().sum())
            total += share * float(origin.values.double().square().sum())
    return (off / total) ** 0.5 if total else 0.0


def widen(model: nn.Module) -> None:
    """Keep in float32 the few weights that are used so: decays, norms inside blocks, routers."""
    for module in model.modules():
        if isinstance(module, Mamba):
            names = ("A_log", "D", "dt_bias", "norm.weight", "conv1d.weight", "conv1d.bias")
        elif isinstance(module, Router):
            names = ("weight", "bias")
        elif isinstance(module, Block) and module.norm is not None:
            names = ("norm.weight",)
        else:
            continue
        for name in names:
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            value = getattr(owner, leaf)
            if value is not None:
                setattr(owner, leaf, nn.Parameter(value.detach().float(), requires_grad=False))
