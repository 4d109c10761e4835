"""The specification in Python, and how it takes the steps of an optimizer where no compiled module does."""

from fusedoptim.reference.passes import average as average
from fusedoptim.reference.passes import ordered_sum as ordered_sum
from fusedoptim.reference.passes import prepare_grad as prepare_grad
from fusedoptim.reference.passes import sum_of_squares as sum_of_squares
from fusedoptim.reference.rule import Rule as Rule
from fusedoptim.reference.rules import RULES as RULES
