"""What all tests share: Hypothesis makes the same examples in every run, so that a red run can be made again, and no test
fails because the machine was busy.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
