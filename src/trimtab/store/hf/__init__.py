"""HF PEFT's adapter folder, read and written; the only place that interprets it.

What a method is called there it declares as data (`Method.hf`). A field that is not understood is
an error only when its value is not off, so that newer files load where they can.
"""

from trimtab.store.hf.fields import CONFIG as CONFIG
from trimtab.store.hf.planning import plan as plan
from trimtab.store.hf.reading import PREFIX as PREFIX
from trimtab.store.hf.reading import TENSORS as TENSORS
from trimtab.store.hf.reading import interpret as interpret
from trimtab.store.hf.reading import read as read
from trimtab.store.hf.reading import remembered as remembered
from trimtab.store.hf.writing import content as content
from trimtab.store.hf.writing import remember as remember
from trimtab.store.hf.writing import write as write
