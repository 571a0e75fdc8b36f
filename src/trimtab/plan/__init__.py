"""What to train: sensitivity on a few batches, and sites and ranks under a budget. See
docs/plan.md."""

from trimtab.plan.allocate import allocate as allocate
from trimtab.plan.budget import Budget as Budget
from trimtab.plan.budget import parse as parse
from trimtab.plan.candidates import Candidate as Candidate
from trimtab.plan.candidates import candidates as candidates
from trimtab.plan.estimators import ESTIMATORS as ESTIMATORS
from trimtab.plan.file import Entry as Entry
from trimtab.plan.file import Plan as Plan
from trimtab.plan.file import read as read
from trimtab.plan.file import understand as understand
from trimtab.plan.file import write as write
from trimtab.plan.measure import measure as measure
from trimtab.plan.propose import entries as entries
