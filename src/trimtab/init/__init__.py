"""Where adapters start: from the base's weights, or from data. See docs/starting.md."""

from trimtab.init.corda import corda as corda
from trimtab.init.eva import eva as eva
from trimtab.init.fisher import fisher as fisher
from trimtab.init.loftq import alternate as alternate
from trimtab.init.loftq import loftq as loftq
from trimtab.init.loftq import nf4 as nf4
from trimtab.init.lora_ga import lora_ga as lora_ga
from trimtab.init.olora import olora as olora
from trimtab.init.orthogonal import orthogonal as orthogonal
from trimtab.init.pissa import pissa as pissa
