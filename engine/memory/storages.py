"""Measure memory without a GPU: follow every storage of a training step from birth to death.

Tensors on PyTorch's meta device have shapes, dtypes and an autograd graph but no data. A training step of a large
network takes seconds on it, on any machine. Two tools measure its memory:

* `StorageTracker` logs births and deaths. A storage is born when an operator first returns it, and dies when the last
  tensor, view or saved variable that uses it dies. So the log is what a perfect caching allocator would see. The
  breakdown replays the log, so a storage may get its category after its birth: gradients are known only after backward.
  Real CPU and CUDA tensors can be followed in the same way.
* `cuda_autocast_on_meta` casts as CUDA autocast does; the meta device has no autocast.

`engine.planning.simulation` uses both for a training step. They do not see memory inside kernels, gaps of the caching
allocator, or the CUDA context: see `engine.memory.overhead`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

CUDA_ALLOCATION_BYTES = 512
"""CUDA's caching allocator rounds every allocation up to a multiple of this."""
ROUNDING = "allocator_rounding"
"""Category of the bytes that rounding adds to storages."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The operators that CUDA autocast treats specially, from PyTorch's "Autocast Op Reference". Functions of
# torch.nn.functional have their own names, because a TorchFunctionMode sees them before their parts.
LOWER_PRECISION = _names("""
    __matmul__ __rmatmul__ addbmm addmm addmv addr baddbmm bmm chain_matmul multi_dot conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mm mv prelu scaled_dot_product_attention
""")
FULL_PRECISION = _names("""
    __pow__ __rdiv__ __rpow__ __rtruediv__ acos asin binary_cross_entropy_with_logits cdist cosh
    cosine_embedding_loss cosine_similarity cross_entropy dist erfinv exp expm1 group_norm hinge_embedding_loss
    kl_div l1_loss layer_norm log log10 log1p log2 margin_ranking_loss mse_loss multilabel_margin_loss nll_loss
    norm normalize pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softplus
    tan triplet_margin_loss
""")
FULL_PRECISION_RESULT = _names("cumprod cumsum log_softmax prod softmax softmin sum")
WIDEST_INPUT = _names("""
    addcdiv addcmul atan2 bilinear cat cross dot grid_sample index_put scatter_add stack tensordot vdot
""")


class StorageTracker(TorchDispatchMode):
    """Follow the storages that operators create while the mode is active, and see their deaths at any time.

    Args:
        device_type: Device whose storages are followed: ``"meta"``, ``"cpu"`` or ``"cuda"``.
        round_to_bytes: Round every storage up to a multiple of this; see ``CUDA_ALLOCATION_BYTES``.

    Attributes:
        live_bytes: Bytes of all storages that are alive.
        peak_bytes: Largest ``live_bytes`` since construction or ``reset_peak``.
        category: Category of new storages; `phase` sets it.
    """

    def __init__(self, device_type: str = "meta", round_to_bytes: int = 1) -> None:
        super().__init__()
        self.device_type = device_type
        self.round_to_bytes = round_to_bytes
        self.live_bytes = 0
        self.peak_bytes = 0
        self.category = "other"
        self._log: list[tuple[int, int]] = []  # (storage number, bytes gained or lost)
        self._log_start = 0
        self._categories: list[str] = []  # by storage number
        self._requested_bytes: list[int] = []  # by storage number, before rounding
        self._alive: dict[int, tuple[int, int, weakref.ref[torch.UntypedStorage]]] = {}  # by address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and log each storage that it returns for the first time."""
        result = func(*args, **(kwargs or {}))
        self.track((result,) if isinstance(result, Tensor) else tree_iter(result), category=None)
        return result

    def track(self, values: Iterable[Any], category: str | None) -> None:
        """Follow the storages of all tensors in ``values``, and give them ``category`` unless it is None.

        A storage that is already followed gets the category for its whole life.
        """
        for value in values:
            if not isinstance(value, Tensor) or value.device.type != self.device_type:
                continue
            storage = value.untyped_storage()
            known = self._alive.get(storage._cdata)
            if known is None:
                self._birth(storage, category or self.category)
            elif category is not None:
                self._categories[known[0]] = category

    def _birth(self, storage: torch.UntypedStorage, category: str) -> None:
        number, address = len(self._categories), storage._cdata
        num_bytes = -(-storage.nbytes() // self.round_to_bytes) * self.round_to_bytes
        self._alive[address] = (number, num_bytes, weakref.ref(storage, lambda _: self._death(address)))
        self._log.append((number, num_bytes))
        self._categories.append(category)
        self._requested_bytes.append(storage.nbytes())
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _death(self, address: int) -> None:
        number, num_bytes, _ = self._alive.pop(address)
        self._log.append((number, -num_bytes))
        self.live_bytes -= num_bytes

    @contextmanager
    def phase(self, category: str) -> Iterator[None]:
        """Set the category of the storages that are born inside the ``with`` block."""
        previous, self.category = self.category, category
        try:
            yield
        finally:
            self.category = previous

    def reset_peak(self) -> None:
        """Forget every peak before now."""
        self.peak_bytes = self.live_bytes
        self._log_start = len(self._log)

    def breakdown(self) -> dict[str, int]:
        """Bytes by category at the peak since ``reset_peak``; together with ``ROUNDING`` they are ``peak_bytes``."""
        live: Counter[str] = Counter()
        at_peak: Counter[str] = Counter()
        peak_bytes, live_bytes = -1, 0
        for position, (number, num_bytes) in enumerate(self._log):
            requested_bytes = self._requested_bytes[number] * (1 if num_bytes > 0 else -1)
            live[self._categories[number]] += requested_bytes
            live[ROUNDING] += num_bytes - requested_bytes
            live_bytes += num_bytes
            if position >= self._log_start - 1 and live_bytes > peak_bytes:
                at_peak, peak_bytes = Counter(live), live_bytes
        return {category: num_bytes for category, num_bytes in at_peak.most_common() if num_bytes}


class cuda_autocast_on_meta(TorchFunctionMode):
    """Cast the inputs of operators on meta tensors as ``torch.autocast("cuda", dtype)`` does on CUDA.

    Casts are part of the autograd graph, as in ``torch.autocast``. The cast of a leaf weight that requires grad is kept
    until the outermost ``with`` block ends.

    Args:
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._depth = 0
        self._weight_casts: dict[Tensor, Tensor] = {}

    @property
    def weight_casts(self) -> list[Tensor]:
        """The kept copies of weights in lower precision."""
        return list(self._weight_casts.values())

    def __enter__(self) -> cuda_autocast_on_meta:
        """Start to cast; may be nested and entered again."""
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop casting; the outermost exit drops the kept casts of weights."""
        self._depth -= 1
        if self._depth == 0:
            self._weight_casts.clear()
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast the arguments by the operator's name, then run it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in LOWER_PRECISION:
            args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
        elif name in FULL_PRECISION:
            args, kwargs = tree_map_only(Tensor, _full, (args, kwargs))
        elif name in FULL_PRECISION_RESULT and _is_lower(args[0]):
            kwargs = {"dtype": torch.float32} | kwargs
        elif name in WIDEST_INPUT and any(_is_full(value) for value in tree_iter((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, _full, (args, kwargs))
        return func(*args, **kwargs)

    def _lower(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32):
            return tensor.to(self.dtype)
        if tensor not in self._weight_casts:
            self._weight_casts[tensor] = tensor.to(self.dtype)
        return self._weight_casts[tensor]


def _is_lower(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _is_full(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if _is_lower(tensor) else tensor
