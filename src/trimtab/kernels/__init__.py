"""Fused implementations of laws. Importing this package registers them; see `core/kernel.py`."""

from trimtab.core.kernel import disabled as disabled
from trimtab.kernels import attention as attention
from trimtab.kernels import coded as coded
from trimtab.kernels import cross_entropy as cross_entropy
from trimtab.kernels import dense as dense
from trimtab.kernels import lora as lora
from trimtab.kernels.attention import blockwise as blockwise
from trimtab.kernels.coded import int8 as int8
from trimtab.kernels.cpu import keep_memory as keep_memory
from trimtab.kernels.rowwise import rowwise as rowwise
