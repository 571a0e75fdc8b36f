"""Trimtab: parameter-efficient fine-tuning of PyTorch models. This file is the table of
contents.
"""

from trimtab import kernels as kernels
from trimtab.adapt import activate as activate
from trimtab.adapt import attach as attach
from trimtab.adapt import detach as detach
from trimtab.adapt import merge as merge
from trimtab.adapt import unmerge as unmerge
from trimtab.core.call import given as given
from trimtab.core.compose import Fuse as Fuse
from trimtab.core.compose import Mix as Mix
from trimtab.core.compose import Route as Route
from trimtab.core.compose import Stack as Stack
from trimtab.core.counts import summary as summary
from trimtab.core.errors import AdapterMismatch as AdapterMismatch
from trimtab.core.errors import InputError as InputError
from trimtab.core.errors import SiteNotFound as SiteNotFound
from trimtab.core.errors import StateError as StateError
from trimtab.core.errors import TrimtabError as TrimtabError
from trimtab.core.registry import methods as methods
from trimtab.core.training import after_backward as after_backward
from trimtab.core.training import parameters as parameters
from trimtab.core.training import penalty as penalty
from trimtab.match import match as match
from trimtab.methods.adalora import AdaLoRA as AdaLoRA
from trimtab.methods.bitfit import BitFit as BitFit
from trimtab.methods.coda import CoDA as CoDA
from trimtab.methods.compacter import Compacter as Compacter
from trimtab.methods.compacter import CompacterPlus as CompacterPlus
from trimtab.methods.conditional import Conditional as Conditional
from trimtab.methods.diff_pruning import DiffPruning as DiffPruning
from trimtab.methods.dora import DoRA as DoRA
from trimtab.methods.full import Full as Full
from trimtab.methods.fusion import Fusion as Fusion
from trimtab.methods.head import Head as Head
from trimtab.methods.houlsby import Houlsby as Houlsby
from trimtab.methods.ia3 import IA3 as IA3
from trimtab.methods.knowledge import Knowledge as Knowledge
from trimtab.methods.layers import Layers as Layers
from trimtab.methods.ln import LNTuning as LNTuning
from trimtab.methods.loha import LoHa as LoHa
from trimtab.methods.lora import LoRA as LoRA
from trimtab.methods.oft import OFT as OFT
from trimtab.methods.parallel import Parallel as Parallel
from trimtab.methods.pfeiffer import Pfeiffer as Pfeiffer
from trimtab.methods.prefix import PrefixTuning as PrefixTuning
from trimtab.methods.prompt import PromptTuning as PromptTuning
from trimtab.methods.ptuning import PTuning as PTuning
from trimtab.methods.qlora import QLoRA as QLoRA
from trimtab.methods.reft import ReFT as ReFT
from trimtab.methods.side import Side as Side
from trimtab.methods.tokens import Tokens as Tokens
from trimtab.methods.vera import VeRA as VeRA
from trimtab.methods.whole import Whole as Whole
from trimtab.quant import dequantise as dequantise
from trimtab.quant import quantise as quantise
from trimtab.reference import Reference as Reference
from trimtab.reference import using as using
from trimtab.store import load as load
from trimtab.store import save as save

__version__ = "0.1.0"
