"""Quantised bases, one file a library. Importing this package imports none of the libraries."""

from trimtab.quant import bitsandbytes as bitsandbytes
from trimtab.quant import torchao as torchao
from trimtab.quant.verbs import FORMATS as FORMATS
from trimtab.quant.verbs import dequantise as dequantise
from trimtab.quant.verbs import quantise as quantise
