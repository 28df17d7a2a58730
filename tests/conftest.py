"""Settings shared by every test; fixtures live beside the tests that use them."""

from hypothesis import settings

# Two busy cores make a single example slow now and then; the suite's own timeout catches hangs.
# Derandomised: a red run on one machine is the same red run on the next.
settings.register_profile("concur", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("concur")
