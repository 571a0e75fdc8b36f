"""The conformance suite: what every method owes, for methods of your own as well.

    from trimtab.testing import check_method

    report = check_method(MyMethod(rank=4))
    print(report)
    report.raise_if_broken()

transformers is imported when the first model is built.
"""

from trimtab.testing.architectures import ARCHITECTURES as ARCHITECTURES
from trimtab.testing.architectures import Architecture as Architecture
from trimtab.testing.check import check_method as check_method
from trimtab.testing.check import hold as hold
from trimtab.testing.cover import cover as cover
from trimtab.testing.cover import rotate as rotate
from trimtab.testing.laws import LAWS as LAWS
from trimtab.testing.laws import Law as Law
from trimtab.testing.layers import LAYERS as LAYERS
from trimtab.testing.layers import Layer as Layer
from trimtab.testing.report import Report as Report
from trimtab.testing.report import Row as Row
from trimtab.testing.trial import NotApplicable as NotApplicable
